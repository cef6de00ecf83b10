// Keeping what is typed, measuring the time at work, and saving exactly once. Loaded before page.js.
"use strict";

const form = document.getElementById("answer");
const message = document.getElementById("message");
const save = document.getElementById("save");
const signInDialog = document.getElementById("sign-in-dialog");
const field = (name) => form.elements.namedItem(name);
const draftKey = `cai:${form.dataset.labeler}:${field("task").value}`;
const savedKey = "cai:saved";

// A pause counts as work for this long at most.
const PAUSE_MS = 60000;

let busy = false;

function say(text) {
  message.textContent = text;
}

// --- drafts: nothing typed is lost by a reload, the back button, or a crash ------------------------------------------

function keepDraft() {
  const fields = Object.fromEntries(new FormData(form));
  for (const name of ["csrf", "labeler", "task", "attempt", "instructions", "skip"]) delete fields[name];
  sessionStorage.setItem(draftKey, JSON.stringify({ ...fields, seconds: worked() }));
}

function restoreDraft() {
  const kept = sessionStorage.getItem(draftKey);
  const fields = JSON.parse(kept === null ? form.dataset.draft : kept);
  for (const [name, value] of Object.entries(fields)) {
    const found = field(name);
    if (name === "seconds") earlier = Number(value) || 0;
    else if (found instanceof RadioNodeList) found.value = value;
    else if (found && found.type === "checkbox") found.checked = value === found.value;
    else if (found && name !== "skip") found.value = value;
  }
  if (editor && field("corrected").value !== "") openEditor(field("corrected").value);
}

// --- time at work: while the page is looked at -----------------------------------------------------------------------

let earlier = 0; // seconds, before a reload
let spent = 0; // milliseconds
let beatAt = performance.now();

function beat() {
  const now = performance.now();
  spent += Math.min(now - beatAt, PAUSE_MS);
  beatAt = now;
}

function worked() {
  if (document.visibilityState === "visible") beat();
  return (earlier + spent / 1000).toFixed(1);
}

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") {
    beatAt = performance.now();
  } else {
    beat();
    keepDraft();
  }
});
for (const kind of ["pointermove", "scroll", "keydown"]) document.addEventListener(kind, beat, { passive: true });

// --- signing in again --------------------------------------------------------------------------------------------------

/** Ask for the password without leaving the page; true once the session is there again. */
async function signIn(token) {
  const password = document.getElementById("password-again");
  const problem = signInDialog.querySelector(".problem");
  problem.hidden = true;
  for (;;) {
    password.value = "";
    signInDialog.returnValue = "";
    signInDialog.showModal();
    await new Promise((resolve) => signInDialog.addEventListener("close", resolve, { once: true }));
    if (signInDialog.returnValue !== "sign-in") return false;
    const body = { csrf: token, name: form.dataset.labeler, password: password.value };
    const [response, found] = await post("/sign-in", new URLSearchParams(body));
    if (response.ok) return setToken(found.csrf);
    problem.textContent = found.error;
    problem.hidden = false;
  }
}

function setToken(token) {
  document.querySelectorAll("input[name=csrf]").forEach((input) => (input.value = token));
  return true;
}

// --- saving ----------------------------------------------------------------------------------------------------------

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Send until the server answers; it takes the same answer once, however often it is sent. */
async function post(path, body) {
  for (let delay = 500; ; delay = Math.min(delay * 2, 10000)) {
    try {
      const response = await fetch(path, { method: "POST", body, headers: { Accept: "application/json" } });
      if (![502, 503, 504].includes(response.status)) return [response, await response.json().catch(() => ({}))];
    } catch {
      // the connection, or a server that is being restarted
    }
    say("The server cannot be reached. Your answer is kept here; trying again …");
    await wait(delay * (0.5 + Math.random())); // spread: after a restart everybody comes back
  }
}

async function submit() {
  if (busy || form.inert) return;
  busy = true;
  save.disabled = true;
  field("seconds").value = worked();
  const late = setTimeout(() => say("Saving …"), 400);
  const done = await send().catch(() => "That did not work; try again.");
  clearTimeout(late);
  if (done === true) {
    sessionStorage.removeItem(draftKey);
    location.replace("/label");
    return; // busy until the next page is there
  }
  field("skip").value = "";
  say(done);
  busy = save.disabled = false;
}

/** True once the answer is recorded, else what to tell the person. */
async function send() {
  let renewed = false;
  for (;;) {
    const [response, found] = await post("/label", new URLSearchParams(new FormData(form)));
    if (response.ok) {
      sessionStorage.setItem(savedKey, found.recorded ? "Saved" : "This one was answered before; the first answer stands.");
      return true;
    }
    if (response.status === 401) {
      if (!(await signIn(found.csrf))) return "Not saved yet. Your answer is kept on this page.";
    } else if (response.status === 403 && found.csrf && !renewed) {
      renewed = setToken(found.csrf); // signed in anew in another tab
    } else if (found.reload) {
      keepDraft(); // what was entered comes back with the comparison
      sessionStorage.setItem(savedKey, found.error);
      location.replace("/label");
      return found.error;
    } else {
      return found.error || "That did not work; try again.";
    }
  }
}
