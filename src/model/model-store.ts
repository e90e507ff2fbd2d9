/**
 * Models by name: `org/name` or `org/name:quant`, and the folder in which `moestream pull` keeps them.
 *
 *     FOLDER/org/name/...                the repository's own files, under their own names
 *     FOLDER/org/name/QUANT.pull.json    one manifest per pulled quantisation: its files, sizes and hashes
 *
 * This half only reads, so that every command can open a model by its name; src/hub/ writes. A manifest is untrusted like
 * any file. Invariant: a path that comes out of here lies below the repository's folder.
 */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { quoted } from './header-reader.ts';

/** What a user types for a model of a repository. */
export interface ModelName {
  /** `org/name` */
  readonly repository: string;
  readonly quant: string | undefined;
}

export interface PulledFile {
  /** Below the repository's folder, with slashes. */
  readonly path: string;
  readonly sizeBytes: number;
  /** Of the bytes: SHA-256, or for small files git's SHA-1 of a blob; whichever the repository publishes. */
  readonly hash: string;
}

/** The manifest of one pulled quantisation. */
export interface PulledModel {
  readonly repository: string;
  readonly quant: string;
  /** The commit that the files are of. */
  readonly commit: string;
  /** What to open: one of `files`, or "." for the folder itself. */
  readonly entry: string;
  readonly files: readonly PulledFile[];
  /** Whether every file is there and verified. */
  readonly complete: boolean;
  readonly pulledAt: string;
}

export const MANIFEST_VERSION = 1;
const MANIFEST_SUFFIX = '.pull.json';
const MANIFEST_BYTES_MAX = 8 * 1024 ** 2;
const FILES_MAX = 10_000;
const PATH_BYTES_MAX = 1024;
/** As the hub allows them: letters, digits, '.', '_' and '-', no dot in front, so that ".." is no part. */
const PART = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$/;
const HASH = /^([0-9a-f]{64}|[0-9a-f]{40})$/;

/** `org/name` or `org/name:quant`; undefined when the text is no such name. */
export function parseModelName(text: string): ModelName | undefined {
  const [name = '', quant, ...more] = text.split(':');
  const parts = name.split('/');
  const isName = parts.length === 2 && parts.every((part) => PART.test(part));
  if (!isName || more.length > 0 || (quant !== undefined && !PART.test(quant))) return undefined;
  return { repository: name, quant };
}

/** Where pulled models lie: $MOESTREAM_MODELS, or the system's custom for a user's data. */
export function modelsFolder(): string {
  const { MOESTREAM_MODELS: wanted, XDG_DATA_HOME: data } = process.env;
  if (wanted !== undefined && wanted !== '') {
    if (isAbsolute(wanted)) return wanted;
    throw new MoestreamError('USAGE', `MOESTREAM_MODELS is ${quoted(wanted)}, expected an absolute path`);
  }
  if (data !== undefined && isAbsolute(data)) return join(data, 'moestream', 'models');
  const usual = process.platform === 'darwin' ? ['Library', 'Application Support'] : ['.local', 'share'];
  return join(homedir(), ...usual, 'moestream', 'models');
}

export function repositoryFolder(repository: string): string {
  return join(modelsFolder(), ...repository.split('/'));
}

export function manifestPath(repository: string, quant: string): string {
  return join(repositoryFolder(repository), `${quant}${MANIFEST_SUFFIX}`);
}

/** Whether a path of a repository may be written below its folder: relative, no "..", nothing that a terminal obeys. */
export function isSafePath(path: string): boolean {
  if (path.length === 0 || Buffer.byteLength(path) > PATH_BYTES_MAX || /[\p{Cc}\\]/u.test(path)) return false;
  return path.split('/').every((part) => part !== '' && part !== '.' && part !== '..');
}

/** The manifest, or undefined when there is none. Throws MODEL_INVALID for one that is damaged. */
export function readManifest(repository: string, quant: string): PulledModel | undefined {
  const path = manifestPath(repository, quant);
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new MoestreamError('MODEL_NOT_FOUND', `${path} cannot be read`, { cause });
  }
  const problem = (why: string): MoestreamError =>
    new MoestreamError('MODEL_INVALID', `${path}: ${why}`, {
      hint: `\`moestream pull ${repository}:${quant}\` writes a new one.`,
    });
  if (text.length > MANIFEST_BYTES_MAX) throw problem('too large to be a manifest');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw problem('no JSON');
  }
  const found = manifestOf(value);
  if (found === undefined) throw problem('not a manifest of this version');
  if (found.repository !== repository || found.quant !== quant)
    throw problem('the manifest of another model');
  return found;
}

type Fields = Record<string, unknown>;
const isObject = (value: unknown): value is Fields => typeof value === 'object' && value !== null;

function manifestOf(value: unknown): PulledModel | undefined {
  if (!isObject(value) || value.version !== MANIFEST_VERSION || !Array.isArray(value.files)) return undefined;
  const { repository, quant, commit, entry, files, complete, pulledAt } = value;
  const texts = [repository, quant, commit, entry, pulledAt].every((each) => typeof each === 'string');
  if (!texts || typeof complete !== 'boolean' || files.length > FILES_MAX || !files.every(isFile))
    return undefined;
  const isEntry = entry === '.' || files.some((file) => file.path === entry);
  return isEntry ? (value as unknown as PulledModel) : undefined;
}

function isFile(value: unknown): value is PulledFile {
  return (
    isObject(value) &&
    typeof value.path === 'string' &&
    isSafePath(value.path) &&
    Number.isSafeInteger(value.sizeBytes) &&
    Number(value.sizeBytes) >= 0 &&
    typeof value.hash === 'string' &&
    HASH.test(value.hash)
  );
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch (error) {
    // A folder that is not there yet has nothing in it; a file in its place is none of ours.
    if (/^(ENOENT|ENOTDIR)$/.test((error as NodeJS.ErrnoException).code ?? '')) return [];
    throw new MoestreamError('MODEL_NOT_FOUND', `${folder} cannot be read`, { cause: error });
  }
}

/** The quantisations of a repository that were pulled, or begun. */
export function pulledQuants(repository: string): string[] {
  return namesIn(repositoryFolder(repository))
    .filter((name) => name.endsWith(MANIFEST_SUFFIX))
    .map((name) => name.slice(0, -MANIFEST_SUFFIX.length))
    .filter((quant) => PART.test(quant));
}

/** Every repository that has a folder of its own. */
export function pulledRepositories(): string[] {
  const root = modelsFolder();
  return namesIn(root)
    .filter((organisation) => PART.test(organisation))
    .flatMap((organisation) =>
      namesIn(join(root, organisation))
        .filter((name) => PART.test(name))
        .map((name) => `${organisation}/${name}`),
    )
    .filter((repository) => pulledQuants(repository).length > 0);
}

/**
 * The pulled model of a name; without a quant, the only one there is. Throws MODEL_NOT_FOUND where there is none and USAGE
 * where there are several.
 */
export function pulledModel({ repository, quant }: ModelName): PulledModel {
  const there = pulledQuants(repository);
  const wanted =
    quant === undefined ? there : there.filter((each) => each.toLowerCase() === quant.toLowerCase());
  if (wanted.length > 1) {
    throw new MoestreamError(
      'USAGE',
      `${repository} is here in ${there.length} quantisations: ${there.join(', ')}`,
      {
        hint: `Name one, such as ${repository}:${there[0]}.`,
      },
    );
  }
  const [only] = wanted;
  const found = only === undefined ? undefined : readManifest(repository, only);
  if (found !== undefined) return found;
  const name = quant === undefined ? repository : `${repository}:${quant}`;
  throw new MoestreamError('MODEL_NOT_FOUND', `${name} is neither a file nor a model that was pulled`, {
    hint: `\`moestream pull ${name}\` fetches it; \`moestream ls\` lists what is here.`,
  });
}

/** The path to open for what a user gave: a path that exists is a path, whatever else it looks like. */
export function modelPath(given: string): string {
  const name = parseModelName(given);
  if (name === undefined || statSync(given, { throwIfNoEntry: false }) !== undefined) return given;
  const found = pulledModel(name);
  if (!found.complete) {
    throw new MoestreamError('MODEL_NOT_FOUND', `${found.repository}:${found.quant} is not whole yet`, {
      hint: `\`moestream pull ${found.repository}:${found.quant}\` goes on where it was.`,
    });
  }
  const folder = repositoryFolder(found.repository);
  return found.entry === '.' ? folder : join(folder, ...found.entry.split('/'));
}
