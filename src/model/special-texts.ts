/**
 * Finds the texts of special tokens in a text: at the leftmost place one begins, the longest that does.
 *
 * Why a tree of characters and no regular expression: a file may declare any number of special tokens, and V8 refuses a
 * pattern of some ten thousand alternatives with an error of its own. Invariant: a search looks at each place at most
 * SPECIAL_CHARS_MAX characters deep, so no file and no text make it slow. Qwen3.5 has 33, the longest of 21 characters.
 */
export const SPECIAL_CHARS_MAX = 256;

interface Node {
  id: number | undefined;
  readonly next: Map<number, Node>;
}

export interface SpecialMatch {
  readonly id: number;
  readonly start: number;
  readonly end: number;
}

export class SpecialTexts {
  readonly #root: Node = { id: undefined, next: new Map() };

  /** `text` must have 1 to SPECIAL_CHARS_MAX characters. */
  add(text: string, id: number): void {
    let node = this.#root;
    for (let at = 0; at < text.length; at++) {
      const code = text.charCodeAt(at);
      let child = node.next.get(code);
      if (child === undefined) {
        child = { id: undefined, next: new Map() };
        node.next.set(code, child);
      }
      node = child;
    }
    node.id = id;
  }

  /** The first match in `text` from `from` on. */
  find(text: string, from: number): SpecialMatch | undefined {
    for (let start = from; start < text.length; start++) {
      const match = this.#longestAt(text, start);
      if (match !== undefined) return match;
    }
    return undefined;
  }

  #longestAt(text: string, start: number): SpecialMatch | undefined {
    let longest: SpecialMatch | undefined;
    let node = this.#root.next.get(text.charCodeAt(start));
    for (let end = start + 1; node !== undefined; end++) {
      if (node.id !== undefined) longest = { id: node.id, start, end };
      node = end < text.length ? node.next.get(text.charCodeAt(end)) : undefined;
    }
    return longest;
  }
}
