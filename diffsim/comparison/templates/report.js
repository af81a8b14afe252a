"use strict";
// The axis and the contenders are switched by CSS; without JavaScript the page works the same. This adds what CSS
// cannot do: the choice is kept in the address, a run is picked out, and printing opens what is folded.
const inputs = [...document.querySelectorAll(".controls input")];

function kept() {
  const axis = inputs.find((input) => input.type === "radio" && input.checked);
  const hidden = inputs.filter((input) => input.type === "checkbox" && !input.checked).map((input) => input.id.slice(5));
  return "axis=" + axis.value + (hidden.length ? "&hide=" + hidden.join(".") : "");
}

function restore() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const hidden = (wanted.get("hide") || "").split(".");
  for (const input of inputs) {
    if (input.type === "radio" && input.value === wanted.get("axis")) input.checked = true;
    if (input.type === "checkbox" && wanted.has("hide")) input.checked = !hidden.includes(input.id.slice(5));
  }
}

for (const input of inputs) {
  input.addEventListener("change", () => {
    try { history.replaceState(null, "", "#" + kept()); } catch (error) { /* some browsers forbid it on files */ }
  });
}
document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
if (location.hash.includes("axis=")) restore();

for (const kind of ["pointerover", "pointerout"]) {
  document.addEventListener(kind, (event) => {
    if (event.target.classList.contains("run")) event.target.classList.toggle("picked", kind === "pointerover");
  });
}

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});
