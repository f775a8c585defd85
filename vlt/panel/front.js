// The probe's front end. The same file draws the panel in a notebook (anywidget calls `render`) and a run saved as a page
// (report.py calls it with a model that holds everything already). What is shown comes from `model`:
//   shown   the clip: name, frames as pictures, spectrogram as a picture, names of the methods
//   view    question, answers, switches, the word that was clicked, heat
//   status  what is being done, and what went wrong
// and what people do goes back as messages, see `send`.
// Text from files and people is only ever set as text, never as HTML.

const FOR = [230, 97, 1], AGAINST = [94, 60, 153]; // orange and purple: every reader can tell them apart
const PIECE = 2 ** 20; // bytes of an upload in one message
const AHEAD = 4 * PIECE; // that may be under way, or Cancel would wait behind all of them
const LARGEST = 2 ** 29; // bytes of a file, as in uploads.py
const PALE = "saturate(0.35) contrast(0.6) brightness(1.15)"; // of pictures under heat; front.css has it too
const FADED = 0.25; // how strong heat is drawn where the whole brings next to nothing
const CUT = " \u2026 (cut off)";
const SURE = 0.8; // words below this probability are marked
const BLIND = "nothing is seen or heard, so this is a guess from the words; the model was hardly ever asked so";

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const minus = (text) => text.replace(/-(?=\d)/g, "\u2212");
const fixed = (number, digits = 2) => minus(number.toFixed(digits));
const plus = (number, digits = 2) => `${number < 0 ? "" : "+"}${fixed(number, digits)}`;
const short = (number) => (number === 0 ? "0" : minus(Number(number.toPrecision(2)).toString()));
const place = (number, digits = 2) => minus(`${+number.toFixed(digits)}`);
const seconds = (number) => `${place(number)} s`;
const sleep = (ms) => new Promise((then) => setTimeout(then, ms));
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

function picture(source, then) {
  const image = new Image();
  image.onload = then;
  image.src = source;
  return image;
}

function greatest(numbers) {
  return Math.max(1e-12, ...numbers.flat(4).map(Math.abs));
}

// Heat [row][column] over a part of a canvas, the pictures below seen through it. most: of the strength of its colours.
function paintHeat(context, heat, top, most, left, width, height) {
  const rows = heat.length, columns = heat[0].length;
  heat.forEach((line, row) =>
    line.forEach((value, column) => {
      const [r, g, b] = value > 0 ? FOR : AGAINST;
      context.fillStyle = `rgba(${r}, ${g}, ${b}, ${0.85 * most * Math.min(1, Math.abs(value) / top)})`;
      const x = Math.round((column * width) / columns), y = Math.round((row * height) / rows);
      const right = Math.round(((column + 1) * width) / columns), low = Math.round(((row + 1) * height) / rows);
      context.fillRect(left + x, y, right - x, low - y);
    }),
  );
}

function download(name, data, type) {
  const link = node("a", { href: URL.createObjectURL(new Blob([data], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Other children in a parent. Those that are the same stay, or a button that is pressed just now would not be clicked. What had
// the focus has it again, found by its key.
function renew(parent, children) {
  const { activeElement } = document, before = [...parent.children];
  const key = parent.contains(activeElement) && activeElement.dataset.key;
  before.slice(children.length).forEach((old) => old.remove());
  children.forEach((child, i) => {
    if (!before[i]) parent.append(child);
    else if (!before[i].isEqualNode(child)) before[i].replaceWith(child);
  });
  if (key && !parent.contains(document.activeElement)) parent.querySelector(`[data-key="${key}"]`)?.focus({ preventScroll: true });
}

// Text that is read aloud when it changes, and only then.
function tell(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

// Arrow keys go from button to button.
function withArrows(row) {
  row.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const all = [...row.querySelectorAll("button:enabled")], at = all.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    all[(at + step + all.length) % all.length].focus();
  });
  return row;
}

class Panel {
  constructor(model, root) {
    this.model = model;
    this.saved = model.get("page") || null; // a page holds what was computed, and can compute no more
    this.root = node("div", { className: this.saved ? "vlt saved" : "vlt" });
    // Keys typed into the panel are not the notebook's shortcuts; those with Ctrl, Alt or Cmd are.
    this.root.addEventListener("keydown", (event) => event.ctrlKey || event.altKey || event.metaKey || event.stopPropagation());
    root.append(this.root);
    this.parts = Object.fromEntries(
      ["clip", "form", "switches", "status", "top", "seen", "heard", "legend", "tools", "tables"].map((name) => [
        name,
        node("section", { className: { top: "top", legend: "notes" }[name] || "" }),
      ]),
    );
    this.root.append(...Object.values(this.parts));
    this.buildForm();
    this.buildSwitches();
    this.buildStatus();
    Object.assign(this.parts.status, { hidden: !!this.saved, tabIndex: -1 });
    // What is read aloud when it comes is filled, not made anew.
    this.below = node("div", { className: "below", hidden: !!this.saved }, (this.change = node("p", { className: "change", "aria-live": "polite" })), (this.without = node("p", { className: "soft" })));
    this.parts.legend.append((this.legend = node("p", { className: "legend", "aria-live": "polite" })), (this.notes = node("div", {})));
    this.buildTools();
    this.paint();
    this.paintStatus();
  }

  paint() {
    if (this.painted !== this.shown) this.paintClip();
    this.paintView();
  }

  get shown() { return this.model.get("shown"); }
  get view() { return this.model.get("view"); }

  // "ask", "switch", "turn" (one frame or segment), "explain", "method", "load_clip", "upload", "cancel"
  send(kind, told = {}, buffers = []) {
    try {
      this.model.send({ kind, ...told }, undefined, buffers);
    } catch {
      this.refuse("the notebook's kernel does not answer: run the panel's cell again");
      this.paintView(); // what was ticked is as it was
    }
  }

  // Of what is on the screen: the kernel may have got further.
  sendAbout(kind, told) { this.send(kind, { ...told, clip: this.shown.origin?.path }); }

  // ------------------------------------------------------------------ what stays

  buildForm() {
    this.question = this.saved
      ? node("p", { className: "question", role: "group", "aria-label": "question" }, this.view.question)
      : node("input", { type: "text", value: this.view.question, "aria-label": "question", onkeydown: (event) => event.key === "Enter" && !event.repeat && this.ask() });
    this.method = node("select", { "aria-label": "method of explanation", onchange: () => this.send("method", { method: this.method.value }) });
    for (const name of this.shown.methods) this.method.append(node("option", { value: name }, name.replaceAll("_", " ")));
    this.method.value = this.view.method;
    this.chosen = { question: this.view.question, method: this.view.method };
    const askButton = this.saved ? null : node("button", { onclick: () => this.ask() }, "Ask");
    this.parts.form.append(
      node("div", { className: "row" }, this.question, askButton, node("label", {}, "explained by ", this.method)),
    );
  }

  // Built once: a button that is replaced while it is pressed is not clicked.
  buildSwitches() {
    const names = { video: "video", audio: "sound", positions: "frame positions" };
    this.switches = Object.entries(names).map(([name, label]) => {
      const tick = this.tick(label, () => this.sendAbout("switch", { [name]: tick.checked }));
      tick.name = name;
      return tick;
    });
    const labels = this.switches.map((tick) => node("label", {}, tick, ` ${names[tick.name]}`));
    const row = node("div", { className: "row", role: "group", "aria-label": "switches" }, node("strong", {}, "On:"), ...labels);
    this.parts.switches.append(this.saved ? "" : row);
  }

  // ------------------------------------------------------------------ what stays for a clip

  paintClip() {
    const { shown, parts } = this;
    this.painted = shown;
    if (this.files) {
      const [path, file] = this.files;
      if (path.value === this.opened) path.value = "";
      file.value = "";
    }
    this.now = 0; // seconds, of the player
    this.frameCells = this.frameButtons = this.frameBars = this.frameSwitches = this.canvases = [];
    this.segmentCells = this.segmentBars = this.segmentSwitches = [];
    this.sound = this.playhead = null;
    parts.clip.replaceChildren(
      node("p", { className: "name" }, node("strong", {}, shown.name), node("span", { className: "soft" }, ` ${shown.kind}, ${seconds(shown.seconds)}`)),
      shown.note ? node("p", { className: "soft" }, shown.note) : "",
      this.saved && this.saved.edits.length ? node("p", { className: "soft" }, `The run was edited: ${this.saved.edits.join(", ")}`) : "",
    );
    this.paintPlayer();
    const there = { video: shown.frames.length > 0, audio: !!shown.sound, positions: shown.frames.length > 0 };
    for (const tick of this.switches) tick.parentNode.hidden = !there[tick.name];
    this.frames = shown.frames.map((frame) => picture(frame.image, () => this.paintHeatEverywhere()));
    this.spectrogram = shown.sound && picture(shown.sound.image, () => this.paintHeatEverywhere());
    this.paintSeen();
    this.paintHeard();
    if (this.saved) this.paintTables();
  }

  paintPlayer() {
    const { shown } = this;
    const data = this.model.get("media");
    if (this.address) URL.revokeObjectURL(this.address);
    this.address = data && data.byteLength ? URL.createObjectURL(new Blob([data], { type: shown.media })) : "";
    const source = this.address || (this.saved && this.saved.media) || "";
    const isVideo = shown.media && shown.media.startsWith("video") && shown.frames.length > 0;
    this.player = source
      ? node(isVideo ? "video" : "audio", {
          src: source,
          controls: true,
          ontimeupdate: () => this.moved(this.player.currentTime - shown.offset),
          onseeked: () => this.moved(this.player.currentTime - shown.offset),
        })
      : null;
    this.over = isVideo && source ? node("canvas", { width: 240, height: 240, "aria-hidden": "true" }) : null;
    this.sides = node("div", { className: "sides" });
    this.aside = node("div", {});
    this.parts.top.classList.toggle("bare", !this.player);
    this.parts.top.replaceChildren(
      node("div", { hidden: !this.player }, (this.screen = node("div", { className: "player" }, this.player, this.over)), (this.overTold = node("small", { hidden: !this.over }, "heat: of the last frame that the model has seen by then"))),
      node("div", {}, this.sides, this.aside, this.below),
    );
  }

  paintSeen() {
    const { shown, parts } = this;
    if (!shown.frames.length) return parts.seen.replaceChildren();
    this.canvases = shown.frames.map(() => node("canvas", { width: 160, height: 160 }));
    this.frameButtons = this.canvases.map((canvas, i) => node("button", { onclick: () => this.seek(shown.frames[i].seconds) }, canvas));
    this.frameBars = shown.frames.map(() => node("div", { className: "bar" }));
    this.frameSwitches = shown.frames.map((_, i) => this.tick(`frame ${i} is seen`, () => this.turn("frames_off", i, this.frameSwitches)));
    this.frameCells = shown.frames.map((frame, i) =>
      node("div", { className: "cell" }, this.frameButtons[i], this.frameBars[i], this.labelled(this.frameSwitches[i], node("span", {}, seconds(frame.seconds)))),
    );
    const strip = withArrows(node("div", { className: "strip" }, ...this.frameCells));
    strip.style.setProperty("--columns", Math.min(shown.frames.length, 8));
    strip.style.setProperty("--narrow", Math.min(shown.frames.length, 4));
    parts.seen.replaceChildren(node("h3", {}, `Seen: ${shown.frames.length} ${shown.frames.length === 1 ? "frame" : "frames"}`), strip);
  }

  paintHeard() {
    const { shown, parts } = this;
    if (!shown.sound) return parts.heard.replaceChildren();
    const segments = shown.sound.segments;
    const same = segments.length > 1 && segments.every(({ start }) => start === segments[0].start);
    const overlap = segments.some(({ start }, i) => i && start < segments[i - 1].end - 1e-6);
    const span = ({ start, end }) => [place(start, 1), node("span", { className: "end" }, `\u2013${place(end, 1)}`)];
    this.sound = node("canvas", { width: 1000, height: 160, role: "img" });
    this.playhead = node("div", { className: "playhead", hidden: true });
    this.segmentBars = segments.map(() => node("div", { className: "bar" }));
    this.segmentSwitches = segments.map((_, i) => this.tick(`segment ${i} is heard`, () => this.turn("segments_off", i, this.segmentSwitches)));
    this.segmentCells = segments.map(({ start, end }, i) =>
      node("div", { className: "cell" }, this.segmentBars[i], this.labelled(this.segmentSwitches[i], node("span", {}, ...(same ? [String(i)] : span({ start, end }))))),
    );
    const hz = shown.sound.ticks.map(({ place, text }) => node("span", { style: `bottom: ${100 * place}%` }, text));
    parts.heard.replaceChildren(
      node("h3", {}, `Heard: ${segments.length} segments (${same ? "each " : "seconds"}`, ...(same ? [...span(segments[0]), " s: the sound is no longer"] : overlap ? ["; they overlap"] : []), ")"),
      node(
        "div", { className: "sound" },
        node("div", { className: "hz", "aria-hidden": "true" }, ...hz),
        node("div", { className: "spectrogram" }, this.sound, this.playhead),
        node("div", { className: "segments" }, ...this.segmentCells),
      ),
    );
  }

  labelled(tick, text) {
    return this.saved ? text : node("label", {}, tick, text);
  }

  tick(label, onchange) {
    return node("input", { type: "checkbox", checked: true, "aria-label": label, onchange });
  }

  // ------------------------------------------------------------------ what changes

  paintView() {
    const { view, shown } = this;
    // what somebody has typed or chosen, and not sent yet, stays
    if (this.method.value === this.chosen.method) this.method.value = view.method;
    const { value } = this.question; // none on a page, whose question is text
    if (value === this.chosen.question || (value === this.asked && value?.trim() === view.question)) this.question.value = view.question;
    this.chosen = { question: view.question, method: view.method };
    const title = this.saved ? "Answer" : `Answer to \u201c${view.question}\u201d`;
    const both = [this.answerRow("Answer", title, view.answer, false)];
    if (view.edited) {
      both.push(this.answerRow("Without what is off", "Without what is off", view.edited, true));
    }
    const { logp } = view.answer, change = view.edited && view.edited.change;
    tell(this.change, view.edited ? `log p of the first answer: ${fixed(logp)} \u2192 ${fixed(logp + change)} (change ${plus(change)})` : "");
    tell(this.without, view.edited ? `off: ${this.whatIsOff().join(", ")}` : "");
    for (const word of this.sides.querySelectorAll("button")) word.setAttribute("aria-pressed", String(word.dataset.key === this.chosenWord));
    renew(this.sides, both);
    this.aside.replaceChildren(view.answer.note ? node("p", { className: "soft", role: "note" }, view.answer.note) : "", node("p", { className: "soft" }, "Click a word to see where it looked and listened. Dashed: the model was unsure."));
    const off = view.switches;
    this.frameCells.forEach((cell, i) => {
      this.frameSwitches[i].checked = !off.frames_off.includes(i);
      this.frameSwitches[i].disabled = !off.video;
      cell.classList.toggle("off", off.frames_off.includes(i) || !off.video);
    });
    this.segmentCells.forEach((cell, i) => {
      this.segmentSwitches[i].checked = !off.segments_off.includes(i);
      this.segmentSwitches[i].disabled = !off.audio;
      cell.classList.toggle("off", off.segments_off.includes(i) || !off.audio);
    });
    for (const tick of this.switches) {
      tick.checked = off[tick.name];
      tick.disabled = tick.name === "positions" && !off.video;
    }
    for (const button of this.exports) { // not disabled, or it would lose the focus
      button.setAttribute("aria-disabled", String(!this.settled));
      button.title = this.settled ? "" : "the answer without what is off is not there yet";
    }
    this.paintLegend();
    this.paintHeatEverywhere();
  }

  // Is what is shown the answer of what is switched?
  get settled() { return !!this.saved || !!this.view.edited || !this.whatIsOff().length; }

  get blind() {
    const { view, shown } = this;
    return !(view.switches.video && shown.frames.length) && !(view.switches.audio && shown.sound);
  }

  whatIsOff() {
    const { video, audio, positions, frames_off, segments_off } = this.view.switches, { shown } = this, off = [];
    if (shown.frames.length && !video) off.push("video");
    if (shown.frames.length && video && !positions) off.push("frame positions");
    if (shown.frames.length && video && frames_off.length) off.push(`what is seen at ${frames_off.map((i) => seconds(shown.frames[i].seconds)).join(", ")}`);
    if (shown.sound && !audio) off.push("sound");
    if (shown.sound && audio && segments_off.length) off.push(`the sound of ${segments_off.map((i) => span(shown.sound.segments[i])).join(", ")}`);
    return off;
    function span({ start, end }) { return `${place(start, 1)}\u2013${place(end, 1)} s`; }
  }

  get chosenWord() { return this.view.word ? `${this.view.word.edited} ${this.view.word.number}` : ""; }

  answerRow(name, title, said, edited) {
    const row = withArrows(node("div", { className: "words", role: "group", "aria-label": name }));
    said.tokens.forEach(({ text, p }, number) => {
      if (!text.trim()) return;
      const key = `${edited} ${number}`, bare = this.saved && !/[\p{L}\p{N}]/u.test(text) ? "; a page holds no heat of punctuation" : "";
      row.append(
        node("button", {
          className: p < SURE ? "unsure" : "",
          title: `probability ${fixed(p, 3)}${bare}`,
          "aria-pressed": String(key === this.chosenWord),
          "data-key": key,
          disabled: !!bare,
          "aria-label": `${text.trim()}, probability ${fixed(p)}${bare}`,
          onclick: () => this.explain(number, edited),
        }, text.trim()),
      );
    });
    const notes = [said.cut ? CUT : "", this.blind && (edited || this.saved) ? BLIND : ""];
    return node("div", { className: edited ? "edited" : "answer" }, node("h3", {}, title), row, ...notes.filter(Boolean).map((text) => node("p", { className: "soft" }, text)));
  }

  paintLegend() {
    const { heat } = this.view;
    if (!heat) return this.legend.replaceChildren(), this.notes.replaceChildren();
    const bare = (colour) => `rgb(${colour.join(",")})`;
    const colours = heat.signed ? [bare(AGAINST), "#ddd", bare(FOR)] : ["#ddd", bare(FOR)];
    const scale = node("span", { className: "scale", style: `background: linear-gradient(90deg, ${colours.join(", ")})` });
    const tops = [...new Set(["frames", "segments"].filter((name) => heat[name]).map((name) => this.top(name)))];
    const ends = (sign) => tops.map((top) => short(sign * top)).join(" / ");
    const [low, high] = heat.signed ? [`against ${ends(-1)}`, "for"] : ["little 0", "much, for or against"];
    const unit = `${tops.length > 1 ? "frames / sound, " : ""}in ${heat.unit}`;
    const notes = heat.warnings.map((warning) => `\u26a0 ${minus(warning)}`);
    if (!this.saved) notes.push(`took ${fixed(heat.seconds, 1)} s; heat is no proof of a cause: vlt.faithfulness measures it, the switches test it`);
    const before = `${this.explained()}: ${low} `, behind = ` ${ends(1)} ${high} (${unit}).${this.inAll()}`;
    if (this.legend.textContent !== before + behind) this.legend.replaceChildren(before, scale, behind);
    this.notes.replaceChildren(...notes.map((note) => node("p", { className: "soft" }, note)));
  }

  explained() {
    const { heat, word, edited } = this.view;
    return `${heat.method.replaceAll("_", " ")} for \u201c${heat.word}\u201d${word && word.edited ? ", in the answer without what is off" : edited ? ", in the first answer" : ""}`;
  }

  inAll() {
    const { heat } = this.view;
    const sums = [[heat.frame_bars, "on frames"], [heat.segment_bars, "on sound"]].filter(([bars]) => bars);
    const faded = heat.little.map((name) => (name === "frames" ? "frames" : "sound")).join(" and ");
    const compared = sums.length < 2 ? "" : heat.one_scale ? ", drawn on one scale" : "; these cannot be compared";
    return ` In all ${sums.map(([bars, where]) => `${short(sum(bars))} ${where}`).join(", ")}${compared}.${faded && ` Faded: ${faded}, bringing next to nothing.`}`;
  }

  most(name) { return this.view.heat.little.includes(name) ? FADED : 1; }

  // What is the deepest colour: of heat that can be compared, the greatest on pictures and sound together.
  top(name) {
    const { heat } = this.view;
    return greatest(heat.one_scale ? [heat.frames || [], heat.segments || []] : [heat[name]]);
  }

  paintHeatEverywhere() {
    const { heat } = this.view;
    const frames = heat && heat.frames, top = frames ? this.top("frames") : 1;
    const glows = frames && greatest(frames) > 0.02 * top; // where nothing does, the pictures keep their colours
    this.screen.classList.toggle("pale", !!glows);
    this.overTold.style.visibility = frames ? "visible" : "hidden"; // its room stays
    if (this.player) this.player.setAttribute("aria-label", this.over && frames ? `${this.shown.name}, with heat` : this.shown.name);
    this.canvases.forEach((canvas, i) => {
      const context = canvas.getContext("2d"), image = this.frames[i];
      if (!image || !image.complete || !image.naturalWidth) return;
      context.filter = glows ? PALE : "none";
      context.imageSmoothingEnabled = image.naturalWidth > 160;
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      context.filter = "none";
      if (frames) paintHeat(context, frames[i], top, this.most("frames"), 0, canvas.width, canvas.height);
      const bars = heat && heat.frame_bars;
      const told = bars ? `, heat ${short(bars[i])}` : "";
      this.frameButtons[i].setAttribute("aria-label", `frame ${i} at ${seconds(this.shown.frames[i].seconds)}${told}`);
      this.bar(this.frameBars[i], bars, i, "frames");
    });
    this.paintSound();
    this.moved(this.now);
  }

  paintSound() {
    if (!this.sound || !this.spectrogram.complete || !this.spectrogram.naturalWidth) return;
    const { heat } = this.view, canvas = this.sound, context = canvas.getContext("2d");
    const n = this.shown.sound.segments.length, width = canvas.width / n;
    context.drawImage(this.spectrogram, 0, 0, canvas.width, canvas.height);
    const grids = heat && heat.segments, bars = heat && heat.segment_bars;
    const top = grids ? this.top("segments") : 1;
    for (let i = 0; i < n; i++) {
      if (!this.view.switches.audio || this.view.switches.segments_off.includes(i)) {
        context.fillStyle = "rgba(255, 255, 255, 0.8)";
        context.fillRect(Math.round(i * width), 0, Math.round(width), canvas.height);
      }
      if (grids) paintHeat(context, grids[i], top, this.most("segments"), Math.round(i * width), Math.round(width), canvas.height);
      context.fillStyle = "#888";
      if (i) context.fillRect(Math.round(i * width), 0, Math.max(1, Math.round(canvas.width / (canvas.clientWidth || canvas.width))), canvas.height);
      this.bar(this.segmentBars[i], bars, i, "segments");
    }
    const told = bars ? `; heat by segment: ${bars.map(short).join(", ")}` : "";
    canvas.setAttribute("aria-label", `spectrogram, ${n} segments${told}`);
  }

  // One bar of several, above the middle line for, below it against.
  bar(place, bars, i, name) {
    place.replaceChildren();
    place.title = bars ? `heat ${short(bars[i])}` : "";
    if (!bars) return;
    const { heat } = this.view;
    const beside = heat.one_scale ? [...(heat.frame_bars || []), ...(heat.segment_bars || [])] : bars;
    const low = Math.min(0, ...beside), high = Math.max(1e-12, ...beside), whole = high - low;
    const size = (100 * Math.abs(bars[i])) / whole, ground = (100 * -low) / whole;
    const bottom = bars[i] >= 0 ? ground : ground - size;
    place.append(node("b", { style: `bottom: ${ground}%` }));
    place.append(node("i", { className: bars[i] < 0 ? "against" : "", style: `bottom: ${bottom}%; height: ${Math.max(size, 1)}%; opacity: ${this.most(name)}` }));
  }

  // The player, or a click, is at a moment: its frame is marked, its heat lies over the video, the playhead goes there.
  moved(time) {
    this.now = time;
    const { shown } = this, { heat } = this.view;
    const at = shown.frames.reduce((last, frame, i) => (frame.seconds <= time + 1e-6 ? i : last), 0);
    this.frameButtons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === at)));
    if (this.over) {
      const context = this.over.getContext("2d");
      context.clearRect(0, 0, this.over.width, this.over.height);
      if (heat && heat.frames) paintHeat(context, heat.frames[at], this.top("frames"), this.most("frames"), 0, this.over.width, this.over.height);
    }
    if (!this.playhead) return;
    const segments = shown.sound.segments;
    const far = segments.map(({ start, end }) => (time >= start && time < end ? Math.abs(time - (start + end) / 2) : Infinity));
    const i = far.indexOf(Math.min(...far)); // of several that overlap, the one in whose middle it is
    this.playhead.hidden = far[i] === Infinity;
    if (!this.playhead.hidden) this.playhead.style.left = `${(100 * (i + (time - segments[i].start) / (segments[i].end - segments[i].start))) / segments.length}%`;
  }

  seek(time) {
    if (this.player) this.player.currentTime = time + this.shown.offset;
    this.moved(time);
  }

  buildStatus() {
    this.what = node("span", {});
    this.progress = node("progress", { "aria-label": "progress" });
    this.cancel = node("button", { onclick: () => { this.uploading = null; this.send("cancel"); } }, "Cancel");
    this.said = node("p", { className: "said", "aria-live": "polite" });
    this.error = node("p", { className: "error", role: "alert" });
    this.work = node("div", { className: "work" }, this.what, this.progress, this.cancel);
    this.parts.status.append(node("div", { role: "status", "aria-live": "polite" }, this.work), node("div", { className: "told" }, this.said, this.error));
  }

  paintStatus() {
    const { busy, what, done, said, error } = this.model.get("status");
    const lost = !busy && document.activeElement === this.cancel; // it is not to be seen any more
    this.work.hidden = !busy;
    if (lost) this.parts.status.focus({ preventScroll: true }); // where a key that comes too late does nothing
    tell(this.what, busy ? `${what}\u2026` : "");
    if (done === null) this.progress.removeAttribute("value");
    else this.progress.value = done;
    tell(this.said, said.length > 60 ? `\u2026${said.slice(-60)}` : said); // one line, of which the end is new
    this.refuse(error);
  }

  // A refusal, in words; "stopped" is none.
  refuse(text) {
    this.error.className = text === "stopped" ? "soft" : "error";
    tell(this.error, text);
    if (text && this.files) this.files[1].value = ""; // the chooser names no file that was not taken
  }

  // ------------------------------------------------------------------ what people do

  ask() {
    this.send("ask", { question: (this.asked = this.question.value) });
  }

  explain(word, edited) {
    const { text } = edited ? this.view.edited : this.view.answer;
    this.sendAbout("explain", { word, edited, method: this.method.value, answer: text });
  }

  turn(name, number, ticks) {
    this.sendAbout("turn", { name, number, on: ticks[number].checked });
  }

  // ------------------------------------------------------------------ files in and out

  buildTools() {
    this.exports = [
      node("button", { onclick: () => this.settled && this.saveState() }, "Save as JSON"),
      node("button", { onclick: () => this.settled && this.savePicture() }, "Save as PNG"),
    ];
    const own = [];
    if (!this.saved) {
      const path = node("input", { type: "text", placeholder: "path of another clip", "aria-label": "path of another clip" });
      const go = () => this.send("load_clip", { path: (this.opened = path.value).trim(), question: (this.asked = this.question.value) });
      path.addEventListener("keydown", (event) => event.key === "Enter" && go());
      const file = node("input", { type: "file", accept: "video/*,audio/*,image/png,image/jpeg,image/gif", "aria-label": "another clip from this computer", onchange: () => this.upload(file.files[0]) });
      own.push(path, node("button", { onclick: go }, "Open"), file);
      this.files = [path, file]; // that name what is opened next
    }
    this.parts.tools.append(node("div", { className: "row" }, ...own, ...this.exports));
  }

  async upload(file) {
    if (!file) return;
    if (file.size > LARGEST) {
      return this.refuse(`${file.name}: ${Math.round(file.size / 2 ** 20)} MiB; a file from the browser has ${LARGEST / 2 ** 20} at most`);
    }
    this.asked = this.question.value;
    const number = (this.uploading = crypto.getRandomValues(new Uint32Array(1))[0]);
    const taken = () => {
      const [of, bytes] = this.model.get("received");
      return of === number ? bytes : 0;
    };
    for (let at = 0; at < file.size || at === 0; at += PIECE) {
      const piece = await file.slice(at, at + PIECE).arrayBuffer();
      while (this.uploading === number && taken() >= 0 && taken() < at - AHEAD) await sleep(20);
      if (this.uploading !== number || taken() < 0) return; // cancelled, refused, or another file has taken its place
      this.send("upload", { number, name: file.name, at, total: file.size, question: this.asked }, [piece]);
    }
  }

  saveState() {
    download("probe.json", JSON.stringify({ clip: this.shown.name, ...this.shown.origin, ...this.view }, null, 1), "application/json");
  }

  savePicture() {
    const width = 1200, line = 24, canvas = node("canvas", { width, height: 10 }), context = canvas.getContext("2d");
    const whole = ({ text, cut }) => (cut ? text + CUT : text);
    const { view, shown } = this, texts = [`${shown.name}: ${view.question}`, whole(view.answer)];
    if (view.answer.note) texts.push(view.answer.note);
    if (view.edited) texts.push(`without ${this.whatIsOff().join(", ")}: ${whole(view.edited)} (log p of the first answer: change ${plus(view.edited.change)})${this.blind ? `; ${BLIND}` : ""}`);
    if (view.heat) texts.push(`${this.explained()} (${view.heat.signed ? "orange: for, purple: against" : "orange: much, for or against"}).${this.inAll()}`);
    if (view.heat) texts.push(...view.heat.warnings.map((warning) => `\u26a0 ${minus(warning)}`));
    context.font = "16px sans-serif";
    const lines = texts.flatMap((text) => wrapped(context, text, width - 20));
    const side = shown.frames.length ? Math.min(160, (width - 20) / Math.min(shown.frames.length, 8) - 6) : 0;
    const rows = Math.ceil(shown.frames.length / 8);
    canvas.height = 20 + lines.length * line + rows * (side + 24) + (shown.sound ? 190 : 0);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, canvas.height);
    context.fillStyle = "#000";
    context.font = "16px sans-serif";
    lines.forEach((text, i) => context.fillText(text, 10, 24 + i * line));
    let down = 16 + lines.length * line;
    context.font = "12px sans-serif";
    shown.frames.forEach((frame, i) => {
      const x = 10 + (i % 8) * (side + 6), y = down + Math.floor(i / 8) * (side + 24);
      context.globalAlpha = this.frameCells[i].classList.contains("off") ? 0.25 : 1;
      context.drawImage(this.canvases[i], x, y, side, side);
      context.globalAlpha = 1;
      context.fillText(seconds(frame.seconds), x, y + side + 14);
    });
    down += rows * (side + 24);
    if (shown.sound) {
      context.drawImage(this.sound, 10, down, width - 20, 150);
      shown.sound.segments.forEach(({ start }, i, all) => context.fillText(seconds(start), 10 + (i * (width - 20)) / all.length, down + 166));
    }
    canvas.toBlob((blob) => download("probe.png", blob, "image/png"));

    function wrapped(context, text, room) {
      const out = [""];
      for (const word of text.split(" ").flatMap((long) => long.match(/.{1,60}/gsu) || [""])) {
        const longer = out.at(-1) ? `${out.at(-1)} ${word}` : word;
        if (context.measureText(longer).width > room && out.at(-1)) out.push(word);
        else out[out.length - 1] = longer;
      }
      return out;
    }
  }

  // ------------------------------------------------------------------ what only a page has

  paintTables() {
    const { stages, sweep } = this.saved;
    const table = (caption, heads, rows) =>
      node("div", { className: "wide" }, node("h3", {}, caption),
        node("table", {},
          node("thead", {}, node("tr", {}, ...heads.map((head) => node("th", { scope: "col", className: head === "edit" ? head : "" }, head)))),
          node("tbody", {}, ...rows.map((row) => node("tr", {}, ...row.map((cell, i) =>
            node("td", { className: heads[i] === "edit" ? "edit" : typeof cell === "string" ? "" : "number" }, typeof cell === "number" ? fixed(cell) : cell ?? "\u2013")))))));
    const parts = [];
    if (sweep.length) {
      parts.push(table("What becomes of the answer under edits", ["name", "edit", "answer", "log p", "change"],
        sweep.map((row) => [row.name, row.edit, `${row.answer}${row.cut ? CUT : ""}${row.same ? " (the same)" : ""}`, row.logprob, row.change])));
    }
    parts.push(table("Stages", ["stage", "shape", "axes", "ms"], stages.map((row) => [row.stage, row.shape.join(" x "), row.axes, row.ms])));
    this.parts.tables.replaceChildren(...parts);
  }
}

function render({ model, el }) {
  const panel = new Panel(model, el);
  const painters = {
    "change:shown": () => panel.paint(),
    "change:view": () => panel.paint(), // of what comes together, either may be told first
    "change:status": () => panel.paintStatus(),
  };
  for (const [name, paint] of Object.entries(painters)) model.on(name, paint);
  return () => {
    for (const [name, paint] of Object.entries(painters)) model.off(name, paint);
    if (panel.address) URL.revokeObjectURL(panel.address);
  };
}

export default { render };
