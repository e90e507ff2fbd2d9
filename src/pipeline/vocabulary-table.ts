/**
 * The text of every token, in shared memory: what the sample stage needs of a tokenizer.
 *
 * Token i has bytes[offsets[i]] to bytes[offsets[i + 1]].
 */
export interface VocabularyTable {
  readonly bytes: Uint8Array<SharedArrayBuffer>;
  /** (vocabulary + 1) */
  readonly offsets: Uint32Array<SharedArrayBuffer>;
  /** (vocabulary): TOKEN_ flags. */
  readonly flags: Uint8Array<SharedArrayBuffer>;
}

/** A token that ends the turn. */
export const TOKEN_ENDS = 1;
/** A token that shows no text. */
export const TOKEN_SILENT = 2;
