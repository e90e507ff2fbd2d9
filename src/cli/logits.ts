/** `moestream logits`: the raw logits of every position, for comparing engines and settings. */
import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import type { Command } from 'commander';
import { open } from '../engine/engine.ts';
import { MoestreamError } from '../errors.ts';
import { readText, tokenIds } from './arguments.ts';
import { addEngineFlags, type EngineFlags, openOptionsOf } from './engine-options.ts';
import type { Interruption } from './interrupt.ts';
import { say } from './output.ts';

interface LogitsFlags extends EngineFlags {
  readonly ids?: string;
  readonly idsFile?: string;
  readonly out: string;
}

export function addLogits(program: Command, interruption: () => Interruption): void {
  addEngineFlags(program.command('logits'))
    .description('write the logits after every token, float32 little endian, row-major')
    .option('--ids <list>', 'token ids, separated by commas')
    .option('--ids-file <path>', 'a file with token ids, - for standard input')
    .requiredOption('--out <path>', 'the file to write')
    .action((flags: LogitsFlags) => writeLogits(flags, interruption()));
}

function idsOf(flags: LogitsFlags): number[] {
  if ((flags.ids === undefined) === (flags.idsFile === undefined)) {
    throw new MoestreamError('USAGE', 'give either --ids or --ids-file');
  }
  return tokenIds(flags.ids ?? readText(flags.idsFile!));
}

/** Writes beside the target and renames at the end, so that a file under that name is always whole. */
async function writeLogits(flags: LogitsFlags, interruption: Interruption): Promise<void> {
  const ids = idsOf(flags);
  const options = openOptionsOf(flags);
  const engine = await open({ ...options, contextLength: options.contextLength ?? Math.max(1, ids.length) });
  const partial = `${flags.out}.part`;
  try {
    const file = openSync(partial, 'w');
    try {
      await engine.logits(ids, (row) => writeWhole(file, row), { signal: interruption.signal });
    } finally {
      closeSync(file);
    }
    renameSync(partial, flags.out);
  } catch (error) {
    rmSync(partial, { force: true });
    throw error;
  } finally {
    await engine.close();
  }
  if (flags.quiet !== true)
    say(`moestream: wrote ${ids.length} rows of ${engine.vocabularySize} logits to ${flags.out}`);
}

function writeWhole(file: number, row: Float32Array): void {
  const bytes = new Uint8Array(row.buffer, row.byteOffset, row.byteLength);
  for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at);
}
