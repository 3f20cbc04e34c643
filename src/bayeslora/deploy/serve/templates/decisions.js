const { questions: known, coverage } = JSON.parse(at("model").textContent);

const DOUBT = [[0.1, "almost none"], [0.35, "little"], [0.7, "some"], [0.95, "much"], [Infinity, "it cannot tell the options apart"]];
const LABELS = [[0.1, "no: the doubt lies in the state itself"], [0.4, "partly"], [Infinity, "yes: most of the doubt is for lack of labels"]];
const NEW = [[0.8, "no, like the training states"], [0.95, "somewhat"], [1, "yes, unlike most training states"], [Infinity, "yes, farther out than any training state"]];
const inWords = (value, scale) => scale.find(([limit]) => value < limit)[1];

function stateOf(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" ? value : text;
  } catch {
    return text;
  }
}

function ownQuestion() {
  const type = at("kind").value, question = { type, instructions: at("instructions").value.trim() };
  const lines = at("options").value.split("\n").map((line) => line.trim()).filter((line) => line);
  if (type === "score") question.criteria = lines;
  if (type === "choice") {
    question.criteria = Object.fromEntries(lines.map((line) => {
      const [label, ...description] = line.split(":");
      return [label.trim(), description.join(":").trim() || null];
    }));
  }
  return question;
}

function requested() {
  const questions = {};
  for (const box of document.querySelectorAll("input[name=question]:checked")) questions[box.value] = known[box.value];
  if (at("instructions").value.trim()) questions["your question"] = ownQuestion();
  if (!Object.keys(questions).length) throw new Error("Tick a question, or write one of your own.");
  return { state: stateOf(at("state").value), questions };
}

function optionsOf(answer) {
  if (answer.type === "noul") return [["true", "yes", answer.noul], ["false", "no", 1 - answer.noul]];
  const text = (key) => (answer.type === "score" ? answer.legend[key] : key);
  return Object.entries(answer.probabilities).map(([key, p]) => [key, text(key), p]);
}

function fact(list, name, words, numbers) {
  const line = element("div"), value = element("dd");
  value.append(element("output", words), element("small", numbers));
  line.append(element("dt", name), value);
  list.append(line);
}

function facts(answer, options) {
  const list = element("dl"), most = Math.log(options.length), byCodes = answer.x_readout === "codes";
  const { entropy, mutual_information: information } = answer.x_uncertainty;
  fact(list, "Doubt", inWords(entropy / most, DOUBT), `entropy ${nats(entropy)}, of at most ${most.toFixed(3)}`);
  if (byCodes && !information) {
    fact(list, "Would labels help?", "not known", "this question is read by codes, without draws of a posterior");
  } else if (entropy / most >= DOUBT[0][0]) {
    fact(list, "Would labels help?", inWords(information / entropy, LABELS), `mutual information ${nats(information)}: the part of the entropy that more labels would take away`);
  }
  if (answer.x_novelty !== undefined) {
    fact(list, "Is it new?", inWords(answer.x_novelty, NEW), `novelty ${answer.x_novelty.toFixed(3)}: the share of training states that lie nearer to each other`);
  }
  if (answer.type === "score") fact(list, "Mean level", answer.score.toFixed(2), `from 0 to ${options.length - 1}`);
  if (answer.x_set) {
    const names = options.filter(([key]) => answer.x_set.includes(key)).map(([, text]) => text);
    const all = names.length === options.length;
    fact(list, "Set", names.join(", "), all ? "all options: none can be left out" : `holds the right one in ${percent(coverage)} of states like those of the calibration`);
  }
  return list;
}

function article(name, question, answer) {
  const made = element("article"), options = optionsOf(answer);
  const [best, named, sure] = options.reduce((a, b) => (b[2] > a[2] ? b : a));
  made.append(element("h2", `${named}: ${percent(sure)}`), element("p", question.instructions || name, "note"));
  if (answer.x_action) {
    const automate = answer.x_action === "automate";
    made.append(element("p", automate ? "Automate: as sure as the certified threshold asks for." : "Escalate: let a person decide.", `verdict ${automate ? "no" : "yes"}`));
  }
  const table = element("table"), rows = element("tbody");
  rows.append(...options.map(([key, text, p]) => bar(text, p, key === best)));
  table.append(rows);
  made.append(table, facts(answer, options));
  return made;
}

function show(body, { answers }) {
  at("answers").replaceChildren(...Object.entries(answers).map(([name, answer]) => article(name, body.questions[name], answer)));
}

at("kind").addEventListener("change", () => { at("listed").hidden = at("kind").value === "noul"; });
answering("v1/systemone", requested, show);
