#!/usr/bin/env node
/** The command line. Parses, calls the library, prints; every failure becomes one sentence and an exit code. */
import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';
import { MoestreamError } from '../errors.ts';
import { addDiskbench } from './diskbench.ts';
import { addDoctor } from './doctor.ts';
import { EXIT_FAILURE, EXIT_OK, EXIT_USAGE, exitCodeOf } from './exit-codes.ts';
import { addGenerate } from './generate.ts';
import { addInspect } from './inspect.ts';
import { type Interruption, watchInterrupts } from './interrupt.ts';
import { addLogits } from './logits.ts';
import { describeError, say } from './output.ts';
import { addPack } from './pack.ts';
import { addPlan } from './plan.ts';
import { addTokenize } from './tokenize.ts';
import { addVerify } from './verify.ts';

const { version } = createRequire(import.meta.url)('../../package.json') as { version: string };

let interruption: Interruption | undefined;

/** Commands that can be interrupted ask for this; the others end by the signal itself. */
function interruptible(): Interruption {
  interruption ??= watchInterrupts();
  return interruption;
}

function createProgram(): Command {
  const program = new Command('moestream')
    .description('Runs Mixture-of-Experts language models larger than memory by streaming experts from SSD.')
    .version(version)
    .exitOverride()
    .showSuggestionAfterError();
  addGenerate(program, interruptible);
  addLogits(program, interruptible);
  addTokenize(program);
  addInspect(program);
  addPack(program, interruptible);
  addVerify(program, interruptible);
  addPlan(program);
  addDiskbench(program, interruptible);
  addDoctor(program, version);
  // Subcommands are made before they inherit anything, so each is told.
  for (const command of program.commands) command.exitOverride().showSuggestionAfterError();
  return program;
}

async function main(): Promise<number> {
  try {
    await createProgram().parseAsync();
    return EXIT_OK;
  } catch (error) {
    // commander has printed its own message; help and version are no errors.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT_OK : EXIT_USAGE;
    if (MoestreamError.is(error) && error.code === 'ABORTED' && interruption !== undefined) {
      return interruption.exitCode();
    }
    say(describeError(error));
    return MoestreamError.is(error) ? exitCodeOf(error.code) : EXIT_FAILURE;
  }
}

// Reading threads that hang in the kernel must not keep a finished command alive.
process.exitCode = await main();
process.exit();
