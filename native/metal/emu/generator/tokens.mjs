// Preprocessed Metal source as tokens whose text can be replaced, so that everything the rewriting does not touch,
// line markers included, comes out as it went in: a compiler's messages and a fault's place name the .metal file.

const PATTERN = new RegExp(
  [
    String.raw`(?<space>#[^\n]*|\/\/[^\n]*|\/\*[\s\S]*?\*\/|\s+)`,
    String.raw`(?<word>[A-Za-z_]\w*)`,
    String.raw`(?<number>(?:\d|\.\d)(?:[eEpP][+-]|[\w.])*)`,
    String.raw`(?<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')`,
    String.raw`(?<mark>\[\[|\]\]|::|->|.)`,
  ].join('|'),
  'gy',
);

const OPENING = { '(': ')', '[': ']', '{': '}', '<': '>' };

export class Tokens {
  constructor(source, fileName) {
    this.list = [];
    let line = 1;
    let file = fileName;
    for (const match of source.matchAll(PATTERN)) {
      const kind = Object.entries(match.groups).find(([, value]) => value !== undefined)[0];
      const text = match[0];
      this.list.push({ text, kind, place: `${file}:${line}` });
      const marker = /^# (\d+) "([^"]*)"/.exec(text);
      if (marker) {
        // The marker's own line end still follows.
        line = Number(marker[1]) - 1;
        file = marker[2];
      }
      line += text.split('\n').length - 1;
    }
  }

  get length() {
    return this.list.length;
  }

  text(index) {
    return this.list[index]?.text ?? '';
  }

  isWord(index) {
    return this.list[index]?.kind === 'word';
  }

  place(index) {
    return this.list[index]?.place ?? 'end of file';
  }

  #isTrivia(index) {
    const token = this.list[index];
    return token.kind === 'space' || token.text === '';
  }

  next(index) {
    do index += 1;
    while (index < this.length && this.#isTrivia(index));
    return index;
  }

  previous(index) {
    do index -= 1;
    while (index >= 0 && this.#isTrivia(index));
    return index;
  }

  // The first index from `index` on whose text is one of `texts`.
  find(index, ...texts) {
    for (let at = index; at < this.length; at = this.next(at)) if (texts.includes(this.text(at))) return at;
    throw new Error(`${this.place(index)}: no ${texts.join(' or ')} follows`);
  }

  // The index of what closes the bracket at `index`.
  closing(index) {
    const open = this.text(index);
    const close = OPENING[open];
    let depth = 0;
    for (let at = index; at < this.length; at = this.next(at)) {
      if (this.text(at) === open) depth += 1;
      if (this.text(at) === close) depth -= 1;
      if (depth === 0) return at;
    }
    throw new Error(`${this.place(index)}: ${open} is not closed`);
  }

  replace(index, text) {
    this.list[index].text = text;
  }

  // Removes [first, last] but keeps the lines.
  erase(first, last) {
    for (let at = first; at <= last; at += 1) {
      if (this.list[at].kind !== 'space') this.list[at].text = '';
    }
  }

  // [first, last] on one line.
  join(first, last) {
    const words = this.list
      .slice(first, last + 1)
      .map((token) => (token.kind === 'space' ? ' ' : token.text));
    return words.join('').replace(/\s+/g, ' ').trim();
  }

  toString() {
    return this.list.map((token) => token.text).join('');
  }
}
