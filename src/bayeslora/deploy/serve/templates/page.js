
"use strict";
const at = (id) => document.getElementById(id);
const { abstain_above: limit, coverage } = JSON.parse(at("limit").textContent);
const nats = (value) => `${value.toFixed(3)} nats`;
const percent = (value) => `${(100 * value).toFixed(1)}\u00a0%`;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function requested() {
  const choices = at("choices").value.split("\n").map((line) => line.trim()).filter((line) => line);
  const body = { items: [{ question: at("question").value, choices }] };
  for (const name of ["num_samples", "seed"]) {
    if (at(name) && at(name).value !== "") body[name] = Number(at(name).value);
  }
  return body;
}

function row(choice, index, record) {
  const line = element("tr", undefined, index === record.prediction ? "best" : "");
  const heading = element("th", choice);
  heading.scope = "row";
  const track = element("td", undefined, "track");
  const bar = element("div", undefined, "bar");
  bar.style.width = `${100 * record.probabilities[index]}%`;
  track.setAttribute("aria-hidden", "true");
  track.append(bar);
  line.append(heading, track, element("td", percent(record.probabilities[index]), "number"));
  if (coverage !== null) line.append(element("td", record.set.includes(index) ? "yes" : "no"));
  return line;
}

function showAbstention(record) {
  at("abstain").hidden = limit === null;
  if (limit === null) return;
  at("abstain").className = record.abstain ? "yes" : "no";
  at("abstain").textContent = record.abstain
    ? `Abstain: the entropy is above ${limit} nats.`
    : `Does not abstain: the entropy is not above ${limit} nats.`;
}

function show(body, answer) {
  const record = answer.predictions[0], { choices } = body.items[0];
  at("answer").textContent = `${record.choice}: ${percent(record.confidence)}`;
  showAbstention(record);
  at("rows").replaceChildren(...choices.map((choice, index) => row(choice, index, record)));
  at("entropy").textContent = nats(record.entropy);
  at("most").textContent = Math.log(choices.length).toFixed(3);
  at("information").textContent = nats(record.mutual_information);
  if (coverage !== null) at("set").textContent = record.set_choices.join(", ") || "none of them";
  at("json").textContent = `${JSON.stringify(body, null, 2)}\n\n${JSON.stringify(answer, null, 2)}`;
  at("result").hidden = false;
}

async function answerTo(body) {
  let response;
  try {
    response = await fetch("v1/predict", {
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
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = requested(), button = at("form").querySelector("button");
  button.disabled = true;
  at("error").hidden = true;
  at("result").classList.add("waiting");
  at("status").textContent = "Predicting ...";
  try {
    show(body, await answerTo(body));
    at("status").textContent = "";
  } catch (error) {
    at("result").hidden = true;
    at("error").textContent = error.message;
    at("error").hidden = false;
    at("status").textContent = "";
  }
  at("result").classList.remove("waiting");
  button.disabled = false;
});

at("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
