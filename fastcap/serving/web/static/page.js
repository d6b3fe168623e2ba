// The page: send a picture, play the refinement back. Everything shown goes through textContent.

const $ = id => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const SECONDS = { written: 0.75, masked: 0.5 };
const PARTS = [
  ["decode_image", "Decoding the image", "one"],
  ["encode", "Encoder", "two"],
  ["decode_caption", "Decoder", "three"],
];
let about = null;   // what /api/model says
let file = null;    // the picture in hand
let answer = null;  // the caption shown
let asking = null;  // AbortController of the request under way
let rows = [];      // its steps in the history
let player = 0;     // the playback under way; a newer one stops it

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

const percent = share => `${Math.round(100 * share)} %`;
const milliseconds = value => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const size = bytes => bytes < 1e5 ? `${Math.ceil(bytes / 1e3)} kB` : `${+(bytes / 1e6).toPrecision(3)} MB`;
const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));

// --- Asking ---------------------------------------------------------------------------------------------------------

function complain(message) {
  $("error").textContent = message;
  $("error").hidden = false;
  $("result").hidden = true;
  $("empty").hidden = true;
}

async function ask() {
  if (!file) return;
  asking?.abort();
  const mine = asking = new AbortController();
  player += 1;
  $("result").classList.add("waiting");
  try {
    const form = new FormData();
    form.append("image", file, file.name || "picture");
    const query = new URLSearchParams({ record_steps: "true" });
    if (about?.num_steps) query.set("num_steps", $("steps").value);
    const response = await fetch(`api/caption?${query}`, { method: "POST", body: form, signal: mine.signal });
    const content = await response.json();
    if (!response.ok) throw new Error(content.error);
    answer = content;
    show();
  } catch (error) {
    if (mine.signal.aborted) return;
    complain(error instanceof TypeError ? "The server cannot be reached; is fastcap demo still running?" : error.message);
  } finally {
    if (mine === asking) $("result").classList.remove("waiting");
  }
}

function take(chosen) {
  if (!chosen) return;
  file = chosen;
  asking?.abort();
  URL.revokeObjectURL($("preview").src);
  $("preview").hidden = true;
  $("invite").hidden = false;
  $("again").hidden = true;
  $("drop").classList.remove("full");
  $("taken").textContent = `${file.name || "pasted picture"} · ${size(file.size)}`;
  if (about && file.size > about.max_bytes) {
    complain(`${file.name}: ${size(file.size)} are more than the limit of ${size(about.max_bytes)}.`);
    return;
  }
  $("preview").src = URL.createObjectURL(file);
  ask();
}

// --- Showing --------------------------------------------------------------------------------------------------------

function word(text, confidence, masked = false) {
  const element = make("span", masked ? "word masked" : "word", text);
  element.style.setProperty("--p", percent(confidence).replace(" ", ""));
  element.title = masked ? "masked" : percent(confidence);
  return element;
}

// One frame of the film: the words of a step, those that it masks shown or hidden.
function draw(index, hide) {
  const step = answer.steps[index];
  const before = index ? answer.steps[index - 1].remasked : step.words.map(() => true);
  $("words").replaceChildren(...step.words.map((text, i) => {
    const element = word(text, step.confidence[i], hide && step.remasked[i]);
    if (!hide && before[i]) element.classList.add("new");
    return element;
  }));
  $("stage").textContent = `step ${index + 1} of ${answer.steps.length}${hide ? ": masking the least sure" : ""}`;
  for (const [i, button] of [...$("history").querySelectorAll("button")].entries()) {
    button.toggleAttribute("aria-current", i === index);
  }
}

// The caption itself. Words that follow themselves are written once in it, so it may be shorter than the last draft.
function drawCaption() {
  const { words, confidence } = answer.steps.at(-1) ?? { words: [], confidence: [] };
  const kept = words.map((text, i) => [text, confidence[i]]).filter(([text], i) => text !== words[i - 1]);
  if (words.length) draw(answer.steps.length - 1, false);
  if (words.join(" ") === answer.caption) {
    $("stage").textContent = "";
  } else if (kept.map(([text]) => text).join(" ") === answer.caption) {
    $("words").replaceChildren(...kept.map(([text, share]) => word(text, share)));
    $("stage").textContent = "repeats written once";
  } else {
    $("words").replaceChildren(...answer.caption.split(" ").map(text => word(text, answer.confidence)));
    $("stage").textContent = "";
  }
}

function row(step, index) {
  const item = make("li", "new");
  const button = make("button", "");
  button.type = "button";
  const line = make("span", "line");
  for (const [i, text] of step.words.entries()) {
    const piece = make("span", "piece");
    piece.append(word(text, step.confidence[i], step.remasked[i]), make("small", "", percent(step.confidence[i])));
    line.append(piece);
  }
  button.append(make("span", "number", index + 1), line);
  button.addEventListener("click", () => {
    player += 1;
    $("history").append(...rows.filter(row => !row.isConnected));
    draw(index, false);
  });
  item.append(button);
  return item;
}

async function play() {
  const mine = player += 1;
  rows = answer.steps.map(row);
  $("history").replaceChildren();
  if (calm.matches) {
    $("history").append(...rows);
  } else if (rows.length) {
    $("words").replaceChildren(...answer.steps[0].words.map(text => word(text, 0, true)));
    $("stage").textContent = `${answer.steps[0].words.length} words, all masked`;
    await pause(SECONDS.masked);
    for (const [index, step] of answer.steps.entries()) {
      if (mine !== player) return;
      $("history").append(rows[index]);
      draw(index, false);
      await pause(SECONDS.written);
      if (mine !== player) return;
      if (step.remasked.some(Boolean)) {
        draw(index, true);
        await pause(SECONDS.masked);
      }
    }
    if (mine !== player) return;
  }
  drawCaption();
}

function showTimes() {
  const times = answer.milliseconds;
  const parts = PARTS.filter(([name]) => name in times);
  if (times.queue >= 1) parts.push(["queue", "Waiting in the queue", "four"]);
  const total = parts.reduce((sum, [name]) => sum + times[name], 0);
  $("total").textContent = milliseconds(total);
  $("parts").replaceChildren(...parts.map(([name, , colour]) => {
    const part = make("span", colour);
    part.style.flexGrow = times[name];
    return part;
  }));
  $("times").replaceChildren(...parts.flatMap(([name, label, colour]) => [
    make("span", `dot ${colour}`), make("dt", "", label), make("dd", "", milliseconds(times[name])),
  ]));
}

function showExperts() {
  const weights = answer.expert_weights ?? [];
  $("gate").hidden = weights.length < 2;
  $("experts").replaceChildren(...weights.flatMap((weight, index) => {
    const track = make("span", "track");
    const bar = make("i", "");
    bar.style.setProperty("--p", `${100 * weight}%`);
    track.append(bar);
    return [make("dt", "", `Expert ${index + 1}`), track, make("dd", "", percent(weight))];
  }));
}

function show() {
  $("error").hidden = $("empty").hidden = true;
  $("result").hidden = false;
  $("text").textContent = answer.caption;
  $("confidence").textContent = `confidence ${percent(answer.confidence)}`;
  $("written").hidden = answer.steps.length === 0;
  showTimes();
  showExperts();
  play();
}

// --- Listening ------------------------------------------------------------------------------------------------------

$("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
$("preview").addEventListener("load", () => {
  $("preview").hidden = $("again").hidden = false;
  $("invite").hidden = true;
  $("drop").classList.add("full");
});
$("preview").addEventListener("error", () => {
  if (file) $("taken").textContent += " · this browser shows no preview of it";
});
for (const name of ["dragover", "dragleave", "drop"]) {
  addEventListener(name, event => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
addEventListener("paste", event => take([...event.clipboardData.files][0]));
$("steps").addEventListener("input", () => { $("chosen").textContent = $("steps").value; });
$("steps").addEventListener("change", ask);
$("replay").addEventListener("click", play);

function dress(theme) {
  document.documentElement.dataset.theme = theme;
}
dress(localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  dress(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  localStorage.setItem("theme", document.documentElement.dataset.theme);
});

async function introduce() {
  about = await (await fetch("api/model")).json();
  const facts = about.model;
  $("model").textContent = [
    facts.name, facts.kind, facts.precision, facts.parameters && `${(facts.parameters / 1e6).toFixed(1)} M parameters`,
    facts.file_bytes && size(facts.file_bytes), facts.image_size && `${facts.image_size} px`,
  ].filter(Boolean).join(" · ");
  $("control").hidden = !about.num_steps;
  if (about.num_steps) {
    $("steps").max = Math.min(about.max_steps, Math.max(12, about.num_steps));
    $("chosen").textContent = $("steps").value = about.num_steps;
    $("control").querySelector(".ends").lastChild.textContent = `${$("steps").max}: mended most`;
  }
  $("taken").textContent = `JPEG, PNG, WebP, GIF, BMP or TIFF, up to ${size(about.max_bytes)}`;
  const here = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  $("promise").textContent = here ? "Your pictures stay on this computer and are not kept." : "Your pictures go to this server alone and are not kept.";
}
introduce().catch(() => complain("The server cannot be reached; is fastcap demo still running?"));
