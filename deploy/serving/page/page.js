// Try every task of the models that are served. Calls the public routes of this server and nothing else.

const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const TABS = { compare: "Compare", classify: "Classify", chat: "Chat", translate: "Translate", search: "Search" };
const HEAT = (x) => `color-mix(in srgb, #2b6cb0 ${Math.round(Math.max(0, x) * 70)}%, transparent)`;

let models = [];
let model = null;
let things = [];
let conversation = [];

// --- calls

async function call(path, body, { stream = false } = {}) {
  const headers = { "content-type": "application/json" };
  const key = $("#key").value.trim();
  if (key) headers.authorization = `Bearer ${key}`;
  const began = performance.now();
  const reply = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (!reply.ok) {
    const { error } = await reply.json().catch(() => ({ error: { message: `status ${reply.status}` } }));
    throw new Error(error.param ? `${error.message} (${error.param})` : error.message);
  }
  return stream ? reply : { ...(await reply.json()), ms: performance.now() - began };
}

function say(text, error = false) {
  $("#status").textContent = text;
  $("#status").classList.toggle("error", error);
}

// Runs what a button asks for, with the button off meanwhile, and says how long it took or what went wrong.
async function attempt(button, work) {
  button.disabled = true;
  say("…");
  try {
    const ms = await work();
    say(ms === undefined ? "" : `${ms.toFixed(0)} ms`);
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

// --- text, picture and sound of a composer

const base64 = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const put = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  put(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); put(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true);
  view.setUint16(34, 16, true); put(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, x)), true));
  return new Blob([view], { type: "audio/wav" });
}

async function record(button, done) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = async () => {
    stream.getTracks().forEach((track) => track.stop());
    button.textContent = "Record";
    const context = new AudioContext();
    try {  // what browsers record is no format that servers read
      const sound = await context.decodeAudioData(await new Blob(parts).arrayBuffer());
      done(wav(sound.getChannelData(0), sound.sampleRate));
    } catch (error) {
      say(`the recording can't be read: ${error.message}`, true);
    } finally {
      context.close();
    }
  };
  recorder.start();
  button.textContent = "Stop";
  button.onclick = () => recorder.stop();
}

function setUpComposer(form, use) {
  form.append($("#composer").content.cloneNode(true));
  $(".go", form).textContent = form.dataset.button;
  const media = {};
  const show = () => {
    $(".chosen", form).replaceChildren(...Object.entries(media).map(([kind, blob]) => shown(kind, blob)));
  };
  for (const kind of ["image", "audio"]) {
    $(`.${kind} input`, form).onchange = (event) => {
      if (event.target.files[0]) media[kind] = event.target.files[0];
      else delete media[kind];
      show();
    };
  }
  const button = $(".record", form);
  const begin = () => record(button, (blob) => { media.audio = blob; show(); button.onclick = begin; })
    .catch((error) => say(`no microphone: ${error.message}`, true));
  button.onclick = begin;
  form.onsubmit = async (event) => {
    event.preventDefault();
    const text = $("textarea", form).value.trim();
    if (!text && !Object.keys(media).length) return say("write something, or choose a file", true);
    await attempt($(".go", form), async () => {
      const item = text ? { text } : {};
      for (const [kind, blob] of Object.entries(media)) item[kind] = await base64(blob);
      const result = await use(item, { ...media });
      form.reset();
      for (const kind of Object.keys(media)) delete media[kind];
      show();
      return result;
    });
  };
}

function shown(kind, blob) {
  const element = document.createElement(kind === "image" ? "img" : "audio");
  element.src = URL.createObjectURL(blob);
  if (kind === "image") Object.assign(element, { alt: blob.name ?? "picture", className: "thumb" });
  else element.controls = true;
  return element;
}

function element(name, text, attributes = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, attributes);
}

// --- compare

function nameOf(thing, i) {
  const parts = [thing.item.text, thing.item.image && "picture", thing.item.audio && "sound"].filter(Boolean);
  return `${i + 1}. ${parts.join(" + ").slice(0, 60)}`;
}

function showThings() {
  $("#things").replaceChildren(...things.map((thing) => {
    const line = element("li", thing.item.text ?? "");
    line.append(" ", ...Object.entries(thing.media).map(([kind, blob]) => shown(kind, blob)));
    return line;
  }));
  $("#do-compare").disabled = things.length < 1;
  $("#clear").disabled = !things.length;
}

async function compare() {
  const reply = await call("v1/embeddings", { model: model.id, input: things.map((thing) => thing.item) });
  const vectors = reply.data.map((each) => each.embedding);
  const kinds = things.map((thing) => Object.keys(thing.item).sort().join());
  const comparable = (i, j) => model.shared_space || kinds[i] === kinds[j];
  const table = element("table", "");
  const head = table.insertRow();
  head.append(element("td", ""), ...things.map((_, j) => element("th", `${j + 1}`, { scope: "col" })));
  things.forEach((thing, i) => {
    const line = table.insertRow();
    line.append(element("th", nameOf(thing, i), { scope: "row" }));
    things.forEach((_, j) => {
      const cosine = comparable(i, j) ? similarity(vectors[i], vectors[j]) : null;
      const cell = element("td", cosine === null ? "–" : cosine.toFixed(3));
      if (cosine !== null) cell.style.background = HEAT(cosine);
      line.append(cell);
    });
  });
  const scroll = element("div", "", { className: "scroll" });
  scroll.append(table);
  const strips = vectors.flatMap((vector, i) => [element("div", `${nameOf(things[i], i)}: ${vector.length} numbers`), strip(vector)]);
  $("#compare .result").replaceChildren(element("h2", "Cosine similarity"), scroll, element("h2", "Vectors"), ...strips);
  return reply.ms;
}

function similarity(a, b) {
  let ab = 0, aa = 0, bb = 0;
  a.forEach((x, i) => { ab += x * b[i]; aa += x * x; bb += b[i] * b[i]; });
  return ab / Math.sqrt(aa * bb || 1);
}

function strip(vector) {
  const canvas = Object.assign(document.createElement("canvas"), { width: vector.length, height: 1 });
  canvas.setAttribute("aria-hidden", "true");
  const pixels = canvas.getContext("2d");
  const most = Math.max(...vector.map(Math.abs)) || 1;
  vector.forEach((x, i) => {
    pixels.fillStyle = x < 0 ? `rgb(197 48 48 / ${-x / most})` : `rgb(43 108 176 / ${x / most})`;
    pixels.fillRect(i, 0, 1, 1);
  });
  return canvas;
}

// --- classify, translate, search

const taskOf = (section) => $(".task", section).value || undefined;

async function classify(item) {
  const labels = lines($("#labels"));
  const body = { model: model.id, task: taskOf($("#classify")), input: [item], top_k: 10 };
  if (labels.length) body.labels = labels;
  const reply = await call("v1/classify", body);
  const [found] = reply.data;
  const verdict = found.out_of_scope ? "out of scope: none of the classes" : found.label;
  $("#classify .result").replaceChildren(element("h2", verdict), ...bars(found.top.map((each) => [each.label, each.prob])));
  return reply.ms;
}

function bars(pairs) {
  return pairs.map(([name, value]) => {
    const line = element("div", "", { className: "bar" });
    const meter = element("meter", "", { value, min: 0, max: 1 });
    meter.setAttribute("aria-label", name);
    line.append(element("span", name), meter, element("span", value.toFixed(3)));
    return line;
  });
}

const lines = (area) => area.value.split("\n").map((line) => line.trim()).filter(Boolean);

async function translate() {
  const input = lines($("#translate textarea"));
  const reply = await call("v1/translate", { model: model.id, task: taskOf($("#translate")), input });
  $("#translate .result").replaceChildren(...reply.data.map((each) => element("p", each.text)));
  return reply.ms;
}

async function search(item) {
  const documents = lines($("#documents"));
  if (!documents.length) throw new Error("write some texts to search, one a line");
  const reply = await call("v1/rerank", { model: model.id, query: item, documents });
  $("#search .result").replaceChildren(...bars(reply.results.map((each) => [documents[each.index], each.relevance_score])));
  return reply.ms;
}

// --- chat

function addTurn(role, text, media = {}) {
  const turn = element("p", text, { className: role });
  turn.append(...Object.entries(media).map(([kind, blob]) => shown(kind, blob)));
  $("#log").append(turn);
  turn.scrollIntoView({ block: "nearest" });
  return turn;
}

async function chat(item, media) {
  const content = [];
  if (item.text) content.push({ type: "text", text: item.text });
  if (item.image) content.push({ type: "image_url", image_url: { url: item.image } });
  if (item.audio) content.push({ type: "input_audio", input_audio: { data: item.audio } });
  const messages = [...conversation, { role: "user", content }];
  const body = { model: model.id, task: taskOf($("#chat")), messages, stream: true,
                 temperature: Number($("#temperature").value) };
  const began = performance.now();
  const reply = await call("v1/chat/completions", body, { stream: true });
  addTurn("user", item.text ?? "", media);
  const turn = addTurn("assistant", "");
  for await (const event of eventsOf(reply.body)) {
    if (event.error) throw new Error(event.error.message);
    turn.textContent += event.choices[0]?.delta.content ?? "";
  }
  conversation = [...messages, { role: "assistant", content: turn.textContent }];
  return performance.now() - began;
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// --- the page

async function connect() {
  const reply = await call("v1/models");
  models = reply.data;
  const select = $("#model");
  select.replaceChildren(...models.map((each) => element("option", each.id)));
  select.disabled = false;
  choose(models[0].id);
  return reply.ms;
}

function choose(id) {
  model = models.find((each) => each.id === id);
  things = [];
  conversation = [];
  showThings();
  $("#log").replaceChildren();
  $$(".result").forEach((result) => result.replaceChildren());
  const tasks = Object.entries(model.tasks);
  const having = (test) => tasks.filter(([, task]) => test(task)).map(([name]) => name);
  const names = {
    classify: having((task) => task.labels.length),
    chat: having((task) => task.max_tokens),
    translate: having((task) => task.kind === "translation"),
  };
  for (const [section, known] of Object.entries(names)) {
    $(`#${section} .task`).replaceChildren(...known.map((name) => element("option", name)));
    $(`#${section} .task`).parentElement.hidden = known.length < 2;
  }
  for (const kind of ["text", "image", "audio"]) {
    $$(`.composer .${kind}`).forEach((part) => { part.hidden = !model.modalities.includes(kind); });
  }
  const about = tasks.map(([name, task]) => `${name} (${task.kind})`).join(", ");
  $("#about").textContent = `takes ${model.modalities.join(", ")}` + (about ? `; ${about}` : "");
  const able = Object.fromEntries(Object.entries(names).map(([section, known]) => [section, known.length > 0]));
  const first = ["classify", "chat"].find((section) => able[section]) ?? "compare";
  Object.assign(able, { compare: true, search: model.modalities.includes("text") });
  able.classify ||= able.search;
  const tabs = Object.entries(TABS).filter(([section]) => able[section]).map(([section, title]) =>
    element("button", title, { id: `${section}-tab`, type: "button", onclick: () => open(section) }));
  $("#tabs").replaceChildren(...tabs);
  open(first);
}

function open(section) {
  $$("main > section").forEach((each) => { each.hidden = each.id !== section; });
  $$("#tabs button").forEach((tab) => tab.removeAttribute("aria-current"));
  $(`#${section}-tab`).setAttribute("aria-current", "true");
  say("");
}

const uses = {
  compare: (item, media) => { things.push({ item, media }); showThings(); },
  classify, chat, search,
};
Object.entries(uses).forEach(([section, use]) => setUpComposer($(`#${section} .composer`), use));
$("#access").onsubmit = (event) => { event.preventDefault(); attempt($("#access button"), connect); };
$("#model").onchange = (event) => choose(event.target.value);
$("#do-compare").onclick = (event) => attempt(event.target, compare);
$("#clear").onclick = () => { things = []; showThings(); $("#compare .result").replaceChildren(); };
$("#forget").onclick = () => { conversation = []; $("#log").replaceChildren(); };
$("#do-translate").onsubmit = (event) => { event.preventDefault(); attempt($("#do-translate button"), translate); };
connect().catch(() => say("Give an API key and connect."));
