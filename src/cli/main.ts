#!/usr/bin/env node
/** The command line. Parses, calls the library, prints; every failure becomes one sentence and an exit code. */
import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';
import { MoestreamError } from '../errors.ts';
import { addBench, withLlamaBenchSpelling } from './bench.ts';
import { addCompare } from './compare.ts';
import { addConfig } from './config.ts';
import { addDiskbench } from './diskbench.ts';
import { addDoctor } from './doctor.ts';
import { EXIT_FAILURE, EXIT_OK, EXIT_USAGE, exitCodeOf } from './exit-codes.ts';
import { addGenerate } from './generate.ts';
import { addInspect } from './inspect.ts';
import { type Interruption, watchInterrupts } from './interrupt.ts';
import { addLogits } from './logits.ts';
import { addModels } from './models.ts';
import { describeError, say } from './output.ts';
import { addPack } from './pack.ts';
import { addPerplexity } from './perplexity.ts';
import { addPlan } from './plan.ts';
import { addProfile } from './profile.ts';
import { addPull } from './pull.ts';
import { addRequantize } from './requantize.ts';
import { addResearch } from './research.ts';
import { addSimulate } from './simulate.ts';
import { addSweep } from './sweep.ts';
import { addTokenize } from './tokenize.ts';
import { addTune } from './tune.ts';
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
  addRequantize(program, interruptible);
  addPlan(program);
  addPull(program, interruptible);
  addModels(program);
  addSimulate(program);
  addDiskbench(program, interruptible);
  addProfile(program, interruptible);
  addPerplexity(program, interruptible);
  addCompare(program, interruptible);
  addBench(program, interruptible);
  addSweep(program, interruptible);
  addTune(program, interruptible);
  addConfig(program);
  addResearch(program, interruptible);
  addDoctor(program, version);
  // Subcommands are made before they inherit anything, so each is told.
  for (const command of program.commands) command.exitOverride().showSuggestionAfterError();
  return program;
}

async function main(): Promise<number> {
  try {
    await createProgram().parseAsync(withLlamaBenchSpelling(process.argv));
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
