"use strict";

const photo = document.getElementById("photo");
const preview = document.getElementById("preview");
const status = document.getElementById("status");
const classes = document.getElementById("classes");

photo.addEventListener("change", async () => {
  const file = photo.files[0];
  if (!file) return;
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  classes.replaceChildren();
  status.textContent = "Asking …";
  const began = performance.now();
  try {
    const response = await fetch("predict", { method: "POST", body: file });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error || response.statusText);
    status.textContent = `${Math.round(performance.now() - began)} ms`;
    for (const found of answer.classes) {
      const item = document.createElement("li");
      const meter = document.createElement("meter");
      meter.value = found.score;
      item.append(meter, `${found.label} (${(100 * found.score).toFixed(1)} %)`);
      classes.append(item);
    }
  } catch (error) {
    status.textContent = error.message;
  }
});
