/**
 * GPT-2's byte alphabet: every byte as one printable character, so that a byte-level BPE vocabulary can be written as
 * text. Printable Latin-1 stands for itself; the other 68 bytes are the characters from U+0100 on, in order.
 */
function isPrintable(byte: number): boolean {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

const BYTE_OF = new Map<string, number>();
const CHARACTER_OF: string[] = [];
let next = 0x100;
for (let byte = 0; byte < 256; byte++) {
  const character = String.fromCodePoint(isPrintable(byte) ? byte : next++);
  BYTE_OF.set(character, byte);
  CHARACTER_OF.push(character);
}

/** The character that stands for a byte. */
export function alphabetOfByte(byte: number): string {
  return CHARACTER_OF[byte]!;
}

/** The bytes that a text in the byte alphabet stands for, or undefined when it holds any other character. */
export function bytesOfAlphabet(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(text.length);
  let count = 0;
  for (const character of text) {
    const byte = BYTE_OF.get(character);
    if (byte === undefined) return undefined;
    bytes[count++] = byte;
  }
  return bytes.subarray(0, count);
}
