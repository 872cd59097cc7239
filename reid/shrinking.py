"""Exported files made smaller: weights in half precision, or a network that computes with whole numbers of 8 bits.

What that costs in Rank-1 is not known until it is measured.
"""

import numpy as np

from reid.exporting import foreign, save_onnx, save_openvino

BATCH = 16  # pictures at a time

# What is computed with whole numbers. Activations that cut off (Clip is ReLU6) are among them, so that what a
# convolution puts out is counted from 0 to where they cut, and not over a range that nobody sees: that alone was 9
# points of Rank-1. All else stays float: normalisation, pooling, sums, unit length.
WHOLE = ('Conv', 'Gemm', 'MatMul', 'Clip', 'Relu')


def shrink(how, source, target, about, pictures=None):
    """Make a smaller file of one that says this `about` itself: 'int8', for which pictures (N, H, W, 3) are shown to
    the network, or 'fp16'."""
    with foreign(f'--{how}'):
        SMALLER[how][about['format']](source, target, about, pictures)


def onnx_to_int8(source, target, about, pictures):
    """Static quantisation (arXiv 1712.05877): weights signed, with a factor of their own for each channel; activations
    from the least to the largest value that pictures (N, H, W, 3), the calibration, cause."""
    import onnx
    from onnxruntime import quantization

    pictures = pictures.astype(about['input'])
    batches = iter([{'pictures': pictures[i : i + BATCH]} for i in range(0, len(pictures), BATCH)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    quantization.quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(WHOLE),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    save_onnx(onnx, onnx.load(target), target, about | {'numbers': 'int8'})


def onnx_to_half(source, target, about, pictures):
    """Weights are kept in half the bits and made float32 again when the file is loaded: any machine can compute so."""
    import onnx

    proto = onnx.load(source)
    for weight in proto.graph.initializer:
        values, name = onnx.numpy_helper.to_array(weight), weight.name
        if values.dtype == np.float32 and values.size >= 1024 and np.abs(values).max() <= np.finfo(np.float16).max:
            half = onnx.numpy_helper.from_array(values.astype(np.float16), f'{name}.half')
            weight.CopyFrom(half)
            back = onnx.helper.make_node('Cast', [half.name], [name], to=onnx.TensorProto.FLOAT)
            proto.graph.node.insert(0, back)
    save_onnx(onnx, proto, target, about | {'numbers': 'float16'})


def openvino_to_half(source, target, about, pictures):
    """The same by OpenVINO itself."""
    import openvino

    made = openvino.Core().read_model(source)
    save_openvino(openvino, made, target, about | {'numbers': 'float16'}, half=True)


SMALLER = {
    'fp16': {'onnx': onnx_to_half, 'openvino': openvino_to_half},
    'int8': {'onnx': onnx_to_int8},
}
