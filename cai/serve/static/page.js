// The page of one comparison: questions, keys, dialogs. Everything that is said is in the form's fields; saving.js keeps
// them and sends them.
"use strict";

const editor = document.getElementById("editor");
const questions = [...form.querySelectorAll("[data-question]")];

// A second click of a double click, or a key held down, must not answer the comparison that comes next.
const SETTLE_MS = 350;

let active = 0; // the question that digits answer
let byPointer = false; // whether the last input was a click or a tap

// --- what has been said ----------------------------------------------------------------------------------------------

const inputs = (question) => [...question.querySelectorAll("input")];
const isAnswered = (question) => inputs(question).some((input) => input.type === "checkbox" || input.checked);
const firstOpen = () => questions.findIndex((question) => !isAnswered(question));

function letterOf(place) {
  return document.querySelector(`#response-${place} .letter`).textContent;
}

/** The places of a ranking: a list of [place, letters], best first. */
function ranking() {
  const groups = new Map();
  for (const input of form.querySelectorAll("input[name^='place.']:checked")) {
    const letters = groups.get(Number(input.value)) || [];
    groups.set(Number(input.value), [...letters, letterOf(input.name.split(".")[1])]);
  }
  return [...groups].sort((a, b) => a[0] - b[0]);
}

/** Positions of the responses that are best so far. */
function best() {
  const verdict = form.querySelector("input[name=verdict]:checked");
  if (verdict) return verdict.value === "tie" ? [] : [verdict.value[0] === "a" ? 0 : 1];
  const places = [...form.querySelectorAll("input[name^='place.']:checked")];
  const first = Math.min(...places.map((input) => Number(input.value)));
  return places.filter((input) => Number(input.value) === first).map((input) => Number(input.name.split(".")[1]));
}

function show() {
  const winners = best();
  document.querySelectorAll(".response").forEach((card, place) => card.classList.toggle("best", winners.includes(place)));
  const line = document.getElementById("ranking");
  if (!line) return;
  const parts = [];
  const chip = (text, open) => Object.assign(document.createElement("span"), { className: open ? "group open" : "group", textContent: text });
  for (const [, letters] of ranking()) {
    if (parts.length) parts.push(Object.assign(document.createElement("span"), { className: "above", textContent: "above" }));
    parts.push(chip(letters.join(" = "), false));
  }
  const open = [...document.querySelectorAll(".letter")].map((node) => node.textContent);
  const left = open.filter((letter) => !ranking().some(([, letters]) => letters.includes(letter)));
  if (left.length) parts.push(chip(`${left.join(" ")} to place`, true));
  line.replaceChildren(...parts);
}

// --- questions and keys ----------------------------------------------------------------------------------------------

function activate(index, withFocus = true) {
  active = Math.max(0, Math.min(index, questions.length - 1));
  questions.forEach((question, k) => question.classList.toggle("active", k === active && questions.length > 1));
  if (!withFocus) return;
  const question = questions[active];
  (question.querySelector("input:checked") || question.querySelector("input")).focus({ preventScroll: true, focusVisible: false });
  if (!question.closest(".dock")) question.scrollIntoView({ block: "nearest" });
}

/** Set a choice as a click would. */
function choose(input) {
  input.checked = input.type === "checkbox" ? !input.checked : true;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

/** What a digit does to the active question: the same digit again takes the next of those that share it (strength). */
function press(key) {
  const same = inputs(questions[active]).filter((input) => input.dataset.key === key);
  if (!same.length) return;
  const steps = same.sort((a, b) => Number(a.dataset.step || 0) - Number(b.dataset.step || 0));
  const at = steps.findIndex((input) => input.checked);
  choose(steps[same[0].type === "checkbox" ? 0 : (at + 1) % steps.length]);
  if (same[0].type === "checkbox") return;
  if ("atOnce" in form.dataset) submit();
  else if (active < questions.length - 1) activate(active + 1);
}

function move(step) {
  const list = inputs(questions[active]);
  if (list[0].type === "checkbox") return;
  const at = list.findIndex((input) => input.checked);
  const to = at < 0 ? (step > 0 ? 0 : list.length - 1) : Math.max(0, Math.min(list.length - 1, at + step));
  choose(list[to]);
  list[to].focus({ preventScroll: true });
}

function enter() {
  const open = firstOpen();
  if (open < 0) submit();
  else if (open === active) say("This question has no answer yet.");
  else activate(open);
}

const commands = {
  ArrowUp: () => activate(active - 1),
  ArrowDown: () => activate(active + 1),
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  Enter: enter,
  s: () => openSkip(),
  u: () => document.querySelector("#undo button")?.click(),
  e: () => editor && openEditor(best().length === 1 ? best()[0] : placeOf(questions[active])),
  c: () => field("critique")?.focus(),
  "?": () => document.getElementById("keys-dialog").showModal(),
};

function placeOf(question) {
  return question.closest(".response")?.id.split("-")[1] || 0;
}

document.addEventListener("keydown", (event) => {
  byPointer = false;
  if (form.inert || document.querySelector("dialog[open]") || event.altKey || event.metaKey) return;
  if (event.target.matches("textarea")) {
    if (event.key === "Escape") activate(active);
    if (event.key === "Enter" && event.ctrlKey) submit();
    return;
  }
  if (event.ctrlKey || event.repeat || event.target.closest("a, summary, .bar")) return;
  if (event.key === "Enter" && event.target.closest("button")) return; // the button's own key
  const command = /^[0-9]$/.test(event.key) ? () => press(event.key) : commands[event.key];
  if (!command) return;
  event.preventDefault();
  command();
});
document.addEventListener("pointerdown", () => (byPointer = true));

form.addEventListener("change", (event) => {
  const question = questions.findIndex((one) => one.contains(event.target));
  if (question >= 0) activate(question, false);
  say("");
  show();
  keepDraft();
  if (byPointer && event.target.name === "verdict" && "atOnce" in form.dataset) submit();
});
form.addEventListener("input", keepDraft);
form.addEventListener("focusin", (event) => {
  const question = questions.findIndex((one) => one.contains(event.target));
  if (question >= 0) activate(question, false);
});

// --- the editor of a response ----------------------------------------------------------------------------------------

function openEditor(place) {
  const text = field("correction");
  const original = document.querySelector(`#response-${place} > .text:not(.empty)`)?.textContent || "";
  if (field("corrected").value !== String(place) || !text.value) text.value = original;
  field("corrected").value = String(place);
  document.getElementById("edited-letter").textContent = letterOf(place);
  editor.hidden = false;
  if (!form.inert) {
    text.focus();
    editor.scrollIntoView({ block: "nearest" });
  }
  keepDraft();
}

document.querySelectorAll(".edit").forEach((button) => button.addEventListener("click", () => openEditor(button.dataset.place)));
document.getElementById("close-editor")?.addEventListener("click", () => {
  field("corrected").value = "";
  field("correction").value = "";
  editor.hidden = true;
  keepDraft();
  activate(active);
});

// --- dialogs ---------------------------------------------------------------------------------------------------------

const skipDialog = document.getElementById("skip-dialog");

document.querySelectorAll("dialog button[value=cancel]").forEach((button) => button.addEventListener("click", () => button.closest("dialog").close("cancel")));

function openSkip() {
  skipDialog.returnValue = "";
  skipDialog.showModal();
}

skipDialog.addEventListener("keydown", (event) => {
  if (event.target.matches("input[name=other]")) return;
  const input = skipDialog.querySelector(`input[data-key="${CSS.escape(event.key)}"]`);
  if (input) input.checked = true;
});
skipDialog.querySelector("input[name=other]").addEventListener("input", () => {
  skipDialog.querySelector("input[data-other]").checked = true;
});
skipDialog.addEventListener("close", () => {
  if (skipDialog.returnValue !== "skip") return;
  const reason = skipDialog.querySelector("input[name=reason]:checked").value || skipDialog.querySelector("input[name=other]").value.trim();
  if (!reason) return say("Say why, or choose a reason.");
  field("skip").value = reason;
  submit();
});
document.getElementById("show-skip").addEventListener("click", openSkip);
document.getElementById("show-keys").addEventListener("click", commands["?"]);

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const open = firstOpen();
  if (open < 0) return submit();
  activate(open);
  say("This question has no answer yet.");
});

// --- the beginning ---------------------------------------------------------------------------------------------------

form.inert = true;
restoreDraft();
show();
say(sessionStorage.getItem(savedKey) || "");
sessionStorage.removeItem(savedKey);
addEventListener("pageshow", (event) => event.persisted && location.reload()); // what the back button brings may be answered
setTimeout(() => {
  form.inert = false;
  const open = firstOpen();
  activate(open < 0 ? questions.length - 1 : open);
  document.documentElement.dataset.ready = "";
}, SETTLE_MS);
setTimeout(() => message.textContent === "Saved" && say(""), 2500);
