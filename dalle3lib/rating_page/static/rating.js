"use strict";
// The page of one rater. The server decides which pair comes next and keeps every vote; this file
// shows the pair, sends the answer until the server has acknowledged it, and asks what comes next.
// Texts go into the page as text, never as HTML. Addresses are relative to the personal link.

const $ = (id) => document.getElementById(id);
const pictures = document.querySelectorAll(".picture");
const choices = document.querySelectorAll("#choices button");
const LETTERS = ["A", "B"];
const FIRST_LOOK = 300; // ms after a pair appears: what comes sooner is a double click, no judgement
const SMALL = 256; // pictures of fewer pixels are enlarged pixel by pixel, by whole factors

let state = null; // the server's last word: see `human_app.state`
let key = ""; // of the answer to come: however often it is sent, it counts once
let shown = Infinity; // when the pair could be seen, in ms
let busy = false;
let enlarged = 0; // which picture was last
let ownPixels = false; // whether an enlarged photograph is shown at its own size

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function randomKey() {
  // crypto.randomUUID is missing where the page is not served over TLS
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function say(text) {
  $("message").textContent = text;
}

async function ask(path, body) {
  // Ask the server until it answers: a vote is safe once it has, and harmless if sent twice.
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const options = body && {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      };
      const reply = await fetch(path, options);
      if (reply.ok) {
        say("");
        return await reply.json();
      }
      if (reply.status < 500) {
        say(await reply.text());
        return null;
      }
    } catch (error) {
      // no connection: the server may be starting again
    }
    say("The server does not answer; trying again. Nothing is lost: please leave this page open.");
    await pause(wait);
  }
}

function loaded(address) {
  // A picture that is ready to be seen; rejects if it cannot be loaded.
  const image = new Image();
  image.src = address;
  return image.decode().then(() => image);
}

function fit(image, width, height) {
  // Scale to a box: small pictures by whole numbers of screen pixels, photographs smoothly.
  const density = window.devicePixelRatio || 1;
  let scale = Math.min(width / image.naturalWidth, height / image.naturalHeight);
  const small = Math.max(image.naturalWidth, image.naturalHeight) < SMALL;
  if (small && scale * density > 1) scale = Math.floor(scale * density) / density;
  image.classList.toggle("small", small);
  image.style.width = `${image.naturalWidth * scale}px`;
  image.style.height = `${image.naturalHeight * scale}px`;
  return image.naturalWidth * scale;
}

function fitAll() {
  const beside = getComputedStyle($("pair")).flexDirection === "row";
  for (const picture of pictures) picture.parentElement.style.maxWidth = "";
  for (const picture of pictures) {
    const image = picture.firstElementChild;
    if (!image) return;
    picture.taken = fit(image, picture.clientWidth, picture.clientHeight);
  }
  // pictures side by side stand close together, so that the eye has a short way
  for (const picture of beside ? pictures : []) {
    picture.parentElement.style.maxWidth = `${picture.taken}px`;
  }
  fitEnlarged();
}

function fitEnlarged() {
  // Fill the window; a photograph can then be seen at its own pixels, if these are more.
  const box = $("zoom").querySelector("div");
  const image = box.firstElementChild;
  if (!image || !$("zoom").open) return;
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const larger = width > box.clientWidth || height > box.clientHeight;
  if (ownPixels && larger) fit(image, width, height);
  else fit(image, box.clientWidth, box.clientHeight);
  image.classList.toggle("more", larger && !ownPixels);
}

async function show(next) {
  // Put the server's word on the page; the pair only once both of its pictures are there.
  if (!next) return;
  const same = state && state.trial?.id === next.trial?.id && state.done === next.done;
  state = next;
  const { trial, done, total } = state;
  $("bar").max = total;
  $("bar").value = done;
  $("count").textContent = `${done} of ${total}`;
  $("undo").disabled = done === 0;
  $("finished").hidden = trial !== null;
  if (state.notice) say(state.notice);
  if (same) return enable(true);
  if ($("zoom").open) $("zoom").close();
  if (trial === null) {
    $("rating").hidden = true;
    $("thanks").textContent =
      `All ${total} answers are stored. You can close this page, or undo the last answer.`;
    $("finished").querySelector("h1").focus();
    return;
  }
  shown = Infinity;
  let images;
  try {
    images = await Promise.all([loaded(trial.left), loaded(trial.right)]);
  } catch (error) {
    state = null;
    return say("A picture could not be loaded. Please reload the page.");
  }
  $("question").textContent = trial.ask;
  $("hint").textContent = trial.hint;
  $("caption").textContent = trial.caption;
  $("caption").hidden = trial.caption === null;
  $("rating").hidden = false;
  images.forEach((image, side) => {
    image.alt = `Picture ${LETTERS[side]}`;
    pictures[side].replaceChildren(image);
  });
  fitAll();
  key = randomKey();
  shown = performance.now();
  enable(true);
  $("question").focus({ preventScroll: true });
}

function enable(on) {
  for (const button of choices) {
    button.disabled = !on;
    if (on) button.classList.remove("chosen");
  }
}

async function once(work) {
  // One request at a time: what is clicked or pressed meanwhile is dropped.
  if (busy) return;
  busy = true;
  try {
    await work();
  } finally {
    busy = false;
  }
}

function vote(choice) {
  const looked = performance.now() - shown;
  if (busy || !state || !state.trial || !(looked > FIRST_LOOK) || $("zoom").open) return;
  once(async () => {
    enable(false);
    document.querySelector(`#choices [value=${choice}]`).classList.add("chosen");
    const seconds = Math.round(looked) / 1000;
    await show(await ask("vote", { trial: state.trial.id, choice, key, seconds }));
  });
}

function undo() {
  const justShown = state && state.trial && !(performance.now() - shown > FIRST_LOOK);
  if (!state || state.done === 0 || justShown) return;
  once(async () => {
    enable(false);
    await show(await ask("undo", { done: state.done, key: randomKey() }));
  });
}

function refresh() {
  // Another tab may have gone on, and the back button may show a page of some time ago.
  once(async () => show(await ask("trial")));
}

function enlarge(side) {
  const image = pictures[side].firstElementChild;
  if (!image) return;
  enlarged = side;
  const copy = new Image();
  copy.src = image.src;
  copy.alt = image.alt;
  $("zoomed").textContent = image.alt;
  $("zoom").querySelector("div").replaceChildren(copy);
  if (!$("zoom").open) {
    ownPixels = false;
    $("zoom").showModal();
  }
  copy.decode().then(fitEnlarged, () => say("A picture could not be loaded. Please reload the page."));
}

function pressed(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.repeat) return;
  const pressedKey = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ($("zoom").open) {
    if (pressedKey === "z") $("zoom").close();
    else if (pressedKey === "ArrowLeft" || pressedKey === "ArrowRight") enlarge(1 - enlarged);
    else return;
    return event.preventDefault();
  }
  // a button that was reached with the tab key keeps its own space
  if (pressedKey === " " && event.target.closest("button")) return;
  const actions = {
    ArrowLeft: () => vote("left"),
    ArrowRight: () => vote("right"),
    " ": () => vote("tie"),
    u: undo,
    z: () => enlarge(0),
  };
  if (!actions[pressedKey]) return;
  event.preventDefault();
  actions[pressedKey]();
}

for (const button of choices) button.addEventListener("click", () => vote(button.value));
pictures.forEach((picture, side) => picture.addEventListener("click", () => enlarge(side)));
$("undo").addEventListener("click", undo);
$("swap").addEventListener("click", () => enlarge(1 - enlarged));
$("close").addEventListener("click", () => $("zoom").close());
$("zoom").querySelector("div").addEventListener("click", (event) => {
  ownPixels = event.target.classList.contains("more");
  if (ownPixels) fitEnlarged();
  else $("zoom").close();
});
document.addEventListener("keydown", pressed);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
window.addEventListener("pageshow", (event) => event.persisted && refresh());
window.addEventListener("resize", fitAll);
refresh();
