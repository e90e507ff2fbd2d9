/** `moestream verify`: whether every byte of a model is there and, where there are checksums, the right one. */
import { existsSync } from 'node:fs';
import type { Command } from 'commander';
import { MoestreamError } from '../errors.ts';
import { checkPulled, type PulledCheck } from '../hub/local.ts';
import { type PulledModel, parseModelName, pulledModel } from '../model/model-store.ts';
import { type Damage, type VerifyResult, verify } from '../pack/verify.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { MODEL_ARGUMENT } from './arguments.ts';
import type { Interruption } from './interrupt.ts';
import { print, say } from './output.ts';
import { progressMeter } from './progress.ts';

interface VerifyFlags {
  readonly quiet?: boolean;
  readonly json?: boolean;
}

export function addVerify(program: Command, interruption: () => Interruption): void {
  program
    .command('verify')
    .description('check the checksums of a pulled or packed model, or read a plain one to its end')
    .argument('<model>', MODEL_ARGUMENT)
    .option('-q, --quiet', 'nothing on stderr but errors')
    .option('--json', 'as JSON')
    .action((model: string, flags: VerifyFlags) => verifyModel(model, flags, interruption()));
}

async function verifyModel(given: string, flags: VerifyFlags, interruption: Interruption): Promise<void> {
  const name = parseModelName(given);
  if (name !== undefined && !existsSync(given)) return verifyPulled(pulledModel(name), flags, interruption);
  return verifyPath(given, flags, interruption);
}

async function verifyPulled(
  model: PulledModel,
  flags: VerifyFlags,
  interruption: Interruption,
): Promise<void> {
  const meter = progressMeter(flags.quiet === true, 'read');
  let found: PulledCheck;
  try {
    found = await checkPulled(model, { ...meter, signal: interruption.signal });
  } finally {
    meter.clear();
  }
  const [first] = found.damages;
  if (flags.json === true) await print(`${JSON.stringify({ ok: first === undefined, ...found })}\n`);
  else await print(found.damages.map(({ path, problem }) => `damaged: ${path}: ${problem}\n`).join(''));
  if (first !== undefined) {
    throw new MoestreamError('VERIFY_FAILED', `${first.path}: ${first.problem}`, {
      hint: `Delete it and run \`moestream pull ${model.repository}:${model.quant}\`.`,
    });
  }
  if (flags.quiet === true) return;
  say(
    `moestream: all ${model.files.length} files match the published hashes: ${formatBytes(found.totalBytes)}`,
  );
}

async function verifyPath(path: string, flags: VerifyFlags, interruption: Interruption): Promise<void> {
  const meter = progressMeter(flags.quiet === true, 'read');
  const began = performance.now();
  let found: VerifyResult;
  try {
    found = await verify(path, { ...meter, signal: interruption.signal });
  } finally {
    meter.clear();
  }
  const seconds = (performance.now() - began) / 1e3;
  if (flags.json === true) await print(`${JSON.stringify({ ...found, seconds })}\n`);
  else await print(report(found));
  if (!found.ok) throw failure(path, found);
  if (flags.quiet === true) return;
  const what = found.kind === 'packed' ? `all ${found.experts} experts match` : 'every byte reads';
  const speed = (found.totalBytes / 1e9 / seconds).toFixed(2);
  say(`moestream: ${what}: ${formatBytes(found.totalBytes)} in ${seconds.toFixed(1)} s (${speed} GB/s)`);
}

/** A plain model's digests as `sha256sum` writes them, then what is damaged, one a line. */
function report(found: VerifyResult): string {
  const digests = found.files.filter((file) => file.sha256 !== undefined);
  const lines = [
    ...digests.map((file) => `${file.sha256}  ${file.path}`),
    ...found.damages.map((damage) => `damaged: ${placeOf(damage)}: ${damage.problem}`),
  ];
  return lines.map((line) => `${line}\n`).join('');
}

function placeOf({ file, offsetBytes, layer, expert, tensor }: Damage): string {
  const whose =
    expert === undefined
      ? tensor === undefined
        ? ''
        : `tensor ${tensor}, `
      : `expert ${expert} of layer ${layer}, `;
  return `${whose}${file} at byte ${offsetBytes}`;
}

function failure(path: string, { damageCount, damages }: VerifyResult): MoestreamError {
  const more = damageCount === 1 ? '' : ` and ${damageCount - 1} more`;
  return new MoestreamError('VERIFY_FAILED', `${path}: damaged: ${placeOf(damages[0]!)}${more}`, {
    hint: 'Fetch or pack it again, and check the disk.',
  });
}
