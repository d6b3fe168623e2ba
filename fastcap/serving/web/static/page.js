// The page: send a picture, play the refinement back. Everything shown goes through textContent.

const $ = id => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const SECONDS = 0.9;  // that a step is shown
const PARTS = {
  decode_image: "Decoding the image", caption: "Network",
  queue: "Waiting in the queue",
};
let about = null;   // what /api/model says
let file = null;    // the picture in hand
let answer = null;  // the caption shown
let asking = null;  // AbortController of the request under way
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
    const response = await fetch("api/caption?record_steps=true", { method: "POST", body: form, signal: mine.signal });
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

function word(text, confidence, masked) {
  const element = make("span", masked ? "word masked" : "word", text);
  element.style.setProperty("--p", percent(confidence).replace(" ", ""));
  element.append(make("small", "", percent(confidence)));
  return element;
}

// The draft after a step, counted from one, with what the step masks again; what it wrote appears.
function draw(step) {
  const { words, confidence, remasked } = answer.steps[step - 1];
  const before = answer.steps[step - 2]?.remasked;
  $("words").replaceChildren(...words.map((text, i) => {
    const element = word(text, confidence[i], remasked[i]);
    if (!before || before[i]) element.classList.add("new");
    return element;
  }));
  $("steps").value = step;
  $("stage").textContent = `step ${step} of ${answer.steps.length}`;
}

async function play() {
  const mine = player += 1;
  for (let step = calm.matches ? answer.steps.length : 1; step <= answer.steps.length; step += 1) {
    if (mine !== player) return;
    draw(step);
    await pause(SECONDS);
  }
}

function showTimes() {
  const parts = Object.entries(answer.milliseconds).filter(([name, time]) => name !== "queue" || time >= 1);
  $("total").textContent = milliseconds(parts.reduce((sum, [, time]) => sum + time, 0));
  $("times").replaceChildren(...parts.flatMap(([name, time]) => [
    make("dt", "", PARTS[name] ?? name), make("span", ""), make("dd", "", milliseconds(time)),
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
  $("walk").hidden = answer.steps.length === 0;
  $("steps").max = answer.steps.length;
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
$("steps").addEventListener("input", () => { player += 1; draw(Number($("steps").value)); });
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
    facts.file_bytes && size(facts.file_bytes), facts.image_size && `${facts.image_size} px`, facts.num_steps && `${facts.num_steps} refinement steps`,
  ].filter(Boolean).join(" · ");
  $("taken").textContent = `JPEG, PNG, WebP, GIF, BMP or TIFF, up to ${size(about.max_bytes)}`;
  const here = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  $("promise").textContent = here ? "Your pictures stay on this computer and are not kept." : "Your pictures go to this server alone and are not kept.";
}
introduce().catch(() => complain("The server cannot be reached; is fastcap demo still running?"));
