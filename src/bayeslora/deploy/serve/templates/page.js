const { abstain_above: limit, coverage } = JSON.parse(at("limit").textContent);

function requested() {
  const choices = at("choices").value.split("\n").map((line) => line.trim()).filter((line) => line);
  const body = { items: [{ question: at("question").value, choices }] };
  for (const name of ["num_samples", "seed"]) {
    if (at(name) && at(name).value !== "") body[name] = Number(at(name).value);
  }
  return body;
}

function row(choice, index, record) {
  const line = bar(choice, record.probabilities[index], index === record.prediction);
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
}

answering("v1/predict", requested, show);
