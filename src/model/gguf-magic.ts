/**
 * The first bytes of a GGUF file, and the names of what people give us instead.
 *
 * Why: the commonest "damaged model" is no model at all: a Git LFS pointer of 130 bytes, the HTML of a login page, an
 * unfinished download full of zeros. Saying so saves the user a search. Invariant: returns only at a GGUF v3, little
 * endian, with the reader behind magic and version.
 */
import { MoestreamError } from '../errors.ts';
import type { HeaderReader } from './header-reader.ts';

const MAGIC = 'GGUF';
const PROBE_BYTES = 64;

/** [what the first bytes match, what that is, what to do about it] */
const MISTAKES: readonly (readonly [pattern: RegExp, what: string, hint: string])[] = [
  [
    /^version https:\/\/git-lfs/,
    'a Git LFS pointer, not the file itself',
    'Fetch the file with `git lfs pull`.',
  ],
  [
    /^\s*<(!doctype|html|\?xml)/i,
    'a web page, not a model',
    'Fetch the file itself, not the page that shows it.',
  ],
  [/^[\s\S]{8}\{"/, 'a safetensors file', 'Give the folder that it lies in, with its config.json.'],
  [
    /^(lmgg|ggml|tjgg|ggjt|fmgg|algg)/,
    'a GGML file from before GGUF',
    'Give a GGUF conversion of the model.',
  ],
  [/^PK[^ -~]{2}/, 'a zip archive or a PyTorch checkpoint', 'Give a GGUF conversion of the model.'],
  [/^\0+$/, 'a file that begins with zeros', 'Its download did not finish: fetch it again.'],
  [/^[[{]/, 'JSON, not a model', 'Fetch the file itself, not its description.'],
];

export function identify(reader: HeaderReader): void {
  if (reader.sizeBytes === 0) throw reader.invalid('the file is empty', 'Fetch it again.');
  const probe = readProbe(reader);
  if (!probe.startsWith(MAGIC)) {
    refuseMistake(reader, probe, MISTAKES);
    throw reader.invalid(`no GGUF file: it begins with ${JSON.stringify(probe.slice(0, 4))}, not "${MAGIC}"`);
  }
  reader.positionBytes = MAGIC.length;
  const version = reader.u32('the version');
  if (version === 3) return;
  const unsupported = (problem: string, hint: string): MoestreamError =>
    new MoestreamError('MODEL_UNSUPPORTED', `${reader.path}: ${problem}`, { hint });
  if ((version & 0xffff) === 0 && version !== 0) {
    throw unsupported('a big-endian GGUF file', 'Give the little-endian conversion of the model.');
  }
  throw unsupported(
    `GGUF version ${version}, this build reads version 3`,
    version < 3 ? 'Convert the model again with a current converter.' : 'A newer moestream may read it.',
  );
}

/** Throws when the first bytes are known to be something else than a safetensors file, which has no magic of its own. */
export function refuseOtherThanSafetensors(reader: HeaderReader): void {
  if (reader.sizeBytes === 0) throw reader.invalid('the file is empty', 'Fetch it again.');
  const probe = readProbe(reader);
  reader.positionBytes = 0;
  // The first eight bytes are a length, which may look like anything.
  if (probe[8] === '{') return;
  if (probe.startsWith(MAGIC)) throw reader.invalid('this is a GGUF file', 'Name it as one: model.gguf.');
  refuseMistake(
    reader,
    probe,
    MISTAKES.filter(([, what]) => what !== 'a safetensors file'),
  );
}

function refuseMistake(reader: HeaderReader, probe: string, mistakes: typeof MISTAKES): void {
  const mistake = mistakes.find(([pattern]) => pattern.test(probe));
  if (mistake !== undefined) throw reader.invalid(`this is ${mistake[1]}`, mistake[2]);
}

/** The first bytes as Latin-1, one character a byte. */
function readProbe(reader: HeaderReader): string {
  const byteLength = Math.min(PROBE_BYTES, reader.sizeBytes);
  reader.take(byteLength, 'the first bytes');
  return reader.header().toString('latin1');
}
