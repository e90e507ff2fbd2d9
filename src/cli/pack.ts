/** `moestream pack`: a copy of a model whose experts can be read in one piece each. */
import type { Command } from 'commander';
import { MoestreamError } from '../errors.ts';
import { pack } from '../pack/pack.ts';
import { formatBytes } from '../pipeline/memory.ts';
import type { Interruption } from './interrupt.ts';
import { print, say } from './output.ts';
import { progressMeter } from './progress.ts';

interface PackFlags {
  readonly output: string;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

export function addPack(program: Command, interruption: () => Interruption): void {
  program
    .command('pack')
    .description('write a copy of a model whose experts are contiguous and page-aligned')
    .argument('<model>', 'GGUF file or any part of a split set, or checkpoint folder')
    .requiredOption('-o, --output <folder>', 'a new folder, or one whose packing was interrupted')
    .option('-q, --quiet', 'nothing on stderr but errors')
    .option('--json', 'a summary as JSON on stdout')
    .action((model: string, flags: PackFlags) => packModel(model, flags, interruption()));
}

async function packModel(model: string, flags: PackFlags, interruption: Interruption): Promise<void> {
  const meter = progressMeter(flags.quiet === true, 'packed and verified');
  const began = performance.now();
  let last = { done: 0, total: 0 };
  try {
    const packed = await pack(model, flags.output, {
      ...meter,
      signal: interruption.signal,
      onProgress: (done, total) => {
        last = { done, total };
        meter.onProgress(done, total);
      },
    });
    meter.clear();
    const seconds = (performance.now() - began) / 1e3;
    if (flags.json === true) return await print(`${JSON.stringify({ ...packed, seconds })}\n`);
    if (flags.quiet === true) return;
    const { folder, layers, experts, totalBytes, writtenBytes } = packed;
    if (writtenBytes === 0) return say(`moestream: ${folder} holds this model already, packed and verified`);
    const speed = (writtenBytes / 1e9 / seconds).toFixed(2);
    const resumed =
      writtenBytes === totalBytes ? '' : `, ${formatBytes(totalBytes - writtenBytes)} were there`;
    say(
      `moestream: packed and verified ${layers} layers of ${experts} experts, ` +
        `${formatBytes(totalBytes)} in ${seconds.toFixed(1)} s (${speed} GB/s${resumed})`,
    );
  } catch (error) {
    meter.clear();
    if (MoestreamError.is(error) && error.code === 'ABORTED') {
      const share = last.total === 0 ? 0 : Math.floor((100 * last.done) / last.total);
      say(`moestream: interrupted at ${share} %; run the same command again to go on`);
    }
    throw error;
  }
}
