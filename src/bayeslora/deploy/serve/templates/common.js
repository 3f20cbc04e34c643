"use strict";
const at = (id) => document.getElementById(id);
const nats = (value) => `${value.toFixed(3)} nats`;
const percent = (value) => `${(100 * value).toFixed(1)}\u00a0%`;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function bar(text, probability, best) {
  const line = element("tr", undefined, best ? "best" : "");
  const heading = element("th", text), track = element("td", undefined, "track");
  const filled = element("div", undefined, "bar");
  heading.scope = "row";
  filled.style.width = `${100 * probability}%`;
  track.setAttribute("aria-hidden", "true");
  track.append(filled);
  line.append(heading, track, element("td", percent(probability), "number"));
  return line;
}

function complaint({ error, detail }) {
  if (error) return error.message;
  const listed = ({ loc, msg }) => `${loc.slice(1).join(".")}: ${msg}`;
  return Array.isArray(detail) ? detail.map(listed).join("\n") : detail.message;
}

async function answerTo(path, body) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  const text = await response.text();
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Error(`${response.status}: ${text.slice(0, 200)}`);
  }
  if (!response.ok) throw new Error(complaint(answer));
  return answer;
}

function answering(path, requested, show) {
  at("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = at("form").querySelector("button");
    button.disabled = true;
    at("error").hidden = true;
    at("result").classList.add("waiting");
    at("status").textContent = "Predicting ...";
    try {
      const body = requested(), answer = await answerTo(path, body);
      show(body, answer);
      at("json").textContent = `${JSON.stringify(body, null, 2)}\n\n${JSON.stringify(answer, null, 2)}`;
      at("result").hidden = false;
    } catch (error) {
      at("result").hidden = true;
      at("error").textContent = error.message;
      at("error").hidden = false;
    }
    at("status").textContent = "";
    at("result").classList.remove("waiting");
    button.disabled = false;
  });
  at("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
  });
}
