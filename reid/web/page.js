// The page works without this. With it: people are chosen by a click into the picture, a form is sent once, and a
// search in a video shows how far it is, and plays from the moment that was clicked.
'use strict';

function mark(input) {
  for (const other of document.getElementsByName(input.name)) {
    const box = document.querySelector(`rect[data-for="${other.id}"]`);
    if (box) box.classList.toggle('on', other.checked);
  }
}

for (const box of document.querySelectorAll('rect[data-for]')) {
  box.addEventListener('click', () => {
    const input = document.getElementById(box.dataset.for);
    input.checked = true;
    input.focus({ preventScroll: true });
    mark(input);
  });
}
for (const input of document.querySelectorAll('.option input')) {
  input.addEventListener('change', () => mark(input));
  if (input.checked) mark(input); // what a browser remembers after "back"
}

for (const form of document.querySelectorAll('form[data-most]')) {
  form.addEventListener('change', () => {
    const inputs = [...form.querySelectorAll('input[type="file"]')];
    const files = inputs.flatMap((input) => [...input.files]);
    const size = files.reduce((sum, file) => sum + file.size, 0);
    const many = files.length > Number(form.dataset.files || 1e9) ? form.dataset.many : '';
    inputs[0].setCustomValidity(size > Number(form.dataset.most) ? form.dataset.large : many);
    inputs[0].reportValidity();
  });
}

for (const form of document.querySelectorAll('form[method="post"]')) {
  form.addEventListener('submit', () => {
    for (const button of form.querySelectorAll('button')) {
      button.dataset.text = button.textContent;
      button.textContent = document.body.dataset.busy;
      setTimeout(() => { button.disabled = true; });
    }
  });
}
window.addEventListener('pageshow', () => { // "back" shows the page as it was left
  for (const button of document.querySelectorAll('button[data-text]')) {
    button.textContent = button.dataset.text;
    button.disabled = false;
  }
});

const clip = document.getElementById('clip');
if (clip) {
  clip.elements.at.addEventListener('change', () => { location.replace(`?at=${clip.elements.at.value}`); });
}

const progress = document.getElementById('progress');

async function follow() {
  try {
    const answer = await fetch(progress.dataset.state, { cache: 'no-store' });
    if (answer.status === 404 || answer.redirected) return location.reload();
    const job = await answer.json();
    if (job.state !== progress.dataset.now) return location.reload();
    if (job.part !== null) progress.querySelector('progress').value = job.part;
    progress.querySelector('span').textContent = job.at || '';
  } catch { /* the service is away for now */ }
  setTimeout(follow, 1000);
}

if (progress) setTimeout(follow, 500);

const player = document.getElementById('player');

for (const link of player ? document.querySelectorAll('a.moment') : []) {
  link.addEventListener('click', (event) => {
    event.preventDefault();
    const [film, at] = link.getAttribute('href').split('#t=');
    if (player.getAttribute('src') !== film) player.src = film;
    player.currentTime = Number(at);
    player.play().catch(() => { /* the next click came first */ });
    player.scrollIntoView({ block: 'nearest' });
  });
}
