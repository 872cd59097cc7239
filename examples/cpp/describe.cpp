// A picture -> its descriptor, by a file that export.py has written, with OpenVINO and nothing else.
//
//     describe model.xml picture.ppm       (or model.onnx)
//
// The file knows what its network expects of pixels, the mirrored view and unit length. All that is left to do here is
// to hand in bytes: height x width x 3, RGB. Two persons are alike as far as the dot product of their descriptors says.

#include <cctype>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>

#include <openvino/openvino.hpp>

namespace {

const char* const usage =
    "usage: describe MODEL PICTURE\n"
    "  MODEL    what export.py has written: model.onnx, or model.xml with model.bin beside it\n"
    "  PICTURE  a binary PPM (P6, 8 bits a colour) of the size that the network takes; Pillow writes one:\n"
    "           Image.open('a.jpg').convert('RGB').resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save('a.ppm')\n"
    "It prints the numbers of the descriptor, one a line. Exit code 2: a mistake, which is named.\n";

// The next number of a PPM's head; between numbers there is white space, and comments from # to the end of the line.
size_t number(std::istream& file) {
    while (std::isspace(file.peek()) || file.peek() == '#') {
        if (file.get() == '#') {
            std::string comment;
            std::getline(file, comment);
        }
    }
    size_t value = 0;
    if (!std::isdigit(file.peek()) || !(file >> value)) {
        throw std::runtime_error("not a binary PPM: its head is damaged");
    }
    return value;
}

// Reads a picture of exactly this size into `pixels`, height * width * 3 bytes.
void read(const std::string& path, size_t height, size_t width, uint8_t* pixels) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error("there is no such file");
    }
    if (file.get() != 'P' || file.get() != '6') {
        throw std::runtime_error("not a binary PPM, which begins with P6");
    }
    const size_t w = number(file), h = number(file), most = number(file);
    if (most != 255) {
        throw std::runtime_error("a PPM of 8 bits a colour is expected, whose largest value is 255");
    }
    if (h != height || w != width) {
        throw std::runtime_error("the picture is " + std::to_string(h) + "x" + std::to_string(w) + " (height x width), "
                                 "but the network takes " + std::to_string(height) + "x" + std::to_string(width) +
                                 ": resize it first");
    }
    file.get();  // the one white space after the head
    const auto bytes = static_cast<std::streamsize>(height * width * 3);
    if (!file.read(reinterpret_cast<char*>(pixels), bytes)) {
        throw std::runtime_error("the picture ends too early");
    }
}

ov::CompiledModel load(const std::string& path) {
    ov::Core core;
    auto model = core.read_model(path);
    ov::preprocess::PrePostProcessor input(model);
    input.input().tensor().set_element_type(ov::element::u8);  // bytes, also for a file that was made with --float
    model = input.build();
    model->reshape({1, model->input().get_partial_shape()[1], model->input().get_partial_shape()[2], 3});
    // Without the hint it computes in bfloat16 where that is quicker, with three digits less.
    return core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
}

}  // namespace

int main(int argc, char* argv[]) {
    if (argc != 3) {
        std::cerr << usage;
        return 2;
    }
    const std::string words[] = {argv[1], argv[2]};
    std::string at = words[0];  // what a mistake is about
    try {
        auto network = load(words[0]);
        auto request = network.create_infer_request();
        auto picture = request.get_input_tensor();  // (1, H, W, 3)
        const auto shape = picture.get_shape();
        at = words[1];
        read(words[1], shape[1], shape[2], picture.data<uint8_t>());
        request.infer();
        const auto features = request.get_output_tensor();  // (1, D)
        std::cout << std::setprecision(9);
        for (size_t i = 0; i < features.get_size(); i++) {
            std::cout << features.data<float>()[i] << '\n';
        }
    } catch (const std::exception& error) {
        std::cerr << "describe: " << at << ": " << error.what() << '\n';
        return 2;
    }
    return std::cout.flush() ? 0 : 1;
}
