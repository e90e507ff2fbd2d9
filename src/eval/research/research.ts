/**
 * The experiment loop: one change at a time against the best so far, kept or discarded by rule, logged at once.
 *
 * Every experiment runs interleaved with the incumbent, order-balanced, so that a machine that changes over the night
 * changes for both. Its perplexity comes first, computed through the same stages. What is kept becomes the incumbent, and
 * later experiments build on it. All state is the log: a run that is killed begins again by reading it.
 */
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { type ErrorCode, MoestreamError } from '../../errors.ts';
import type { RunMeasurement, RunRequest } from '../measure-run.ts';
import type { PerplexityRequest } from '../perplexity.ts';
import { machineName, moestreamVersion } from '../profile/key.ts';
import { balancedOrder } from '../schedule.ts';
import { scoreOf } from '../score.ts';
import { median } from '../statistics.ts';
import type { TaskRunner, TaskSurroundings } from '../tasks/task.ts';
import { buildCommit, commitOf, removeBuilds, resolveRef } from './build.ts';
import {
  BASELINE_DIGEST,
  baselineOf,
  type Configuration,
  changedBy,
  coreDigest,
  describeChanges,
  experimentDigest,
  modelPath,
} from './configuration.ts';
import type { ResearchLog } from './log.ts';
import type { Experiment, ResearchPlan } from './plan.ts';
import type { LogHead, LogPerplexity, LogResult, LogRound, LogRun } from './records.ts';
import { judge } from './verdict.ts';

export interface ResearchOptions {
  readonly plan: ResearchPlan;
  readonly log: ResearchLog;
  /** Where builds of git refs go. */
  readonly folder: string;
  readonly runner: TaskRunner;
  /** The memory of runs whose settings name none; a log that is gone on with brings its own. */
  readonly budgetBytes: number;
  readonly signal?: AbortSignal;
  readonly notice: (sentence: string) => void;
  readonly onRun?: (name: string, round: number, rounds: number) => void;
  readonly onResult?: (result: LogResult) => void;
}

/** Nothing that an experiment did: the whole research cannot go on. */
const FATAL: readonly ErrorCode[] = ['ABORTED', 'NATIVE_MISSING', 'INTERNAL', 'DISK_FULL', 'WRITE_FAILED'];

interface Contender {
  readonly digest: string;
  readonly configuration: Configuration;
}

interface Trial {
  readonly number: number;
  readonly name: string;
  readonly why: string;
  readonly changes: string;
  readonly own: Contender;
  /** Undefined for the baseline. */
  readonly against: Contender | undefined;
}

interface Findings {
  readonly notices: Set<string>;
  commit: string | null;
  perplexity: LogPerplexity | undefined;
  rounds: readonly LogRound[];
}

/** Works through the plan, from where the log ends. Throws ABORTED by the signal, and what no experiment can be blamed for. */
export async function research(options: ResearchOptions): Promise<void> {
  const loop = new Research(options);
  await loop.run();
}

class Research {
  private readonly options: ResearchOptions;
  private readonly machine = machineName();
  private readonly head: LogHead;
  private readonly results: LogResult[];
  /** One build per commit, and one commit per ref, for as long as this process runs. */
  private readonly commits = new Map<string, string>();

  constructor(options: ResearchOptions) {
    const { plan, log, budgetBytes } = options;
    this.options = options;
    const core = coreDigest(plan);
    const before = log.content.head;
    if (before !== undefined && before.core !== core) {
      throw new MoestreamError(
        'LOG_REFUSED',
        `the results are of another baseline, run, score or gates than ${plan.path}`,
        {
          hint: 'Experiments may be added to a plan; for the rest begin anew with another --out.',
        },
      );
    }
    const begun = {
      name: plan.name ?? plan.path,
      core,
      budgetBytes,
      score: plan.score,
      perplexityRaise: plan.gates.perplexity?.raise ?? null,
      startedAt: new Date().toISOString(),
      machine: this.machine,
      moestream: moestreamVersion,
    };
    if (before === undefined) log.begin(begun);
    else if (before.machine !== this.machine)
      options.notice(`the results so far are of another machine: ${before.machine}`);
    this.head = before ?? { kind: 'head', format: 'moestream-research', version: 1, ...begun };
    this.results = [...log.content.results];
  }

  async run(): Promise<void> {
    const { plan, folder, notice } = this.options;
    const base: Contender = { digest: BASELINE_DIGEST, configuration: baselineOf(plan) };
    let baseline = this.results.find(({ verdict }) => verdict === 'baseline');
    if (baseline === undefined) {
      baseline = await this.attempt({
        number: 0,
        name: 'baseline',
        why: '',
        changes: describeChanges(plan.baseline),
        own: base,
        against: undefined,
      });
    }
    let incumbent = base;
    for (const experiment of plan.experiments) {
      const digest = experimentDigest(experiment);
      const found =
        this.results.find((result) => result.experiment === digest) ??
        (await this.attempt(this.trialOf(experiment, digest, incumbent)));
      if (found.verdict === 'keep')
        incumbent = { digest, configuration: changedBy(incumbent.configuration, experiment) };
    }
    await removeBuilds(plan.folder, join(folder, 'builds'), notice);
  }

  private trialOf(experiment: Experiment, digest: string, incumbent: Contender): Trial {
    return {
      number: this.results.length,
      name: experiment.name,
      why: experiment.why ?? '',
      changes: describeChanges(experiment),
      own: { digest, configuration: changedBy(incumbent.configuration, experiment) },
      against: incumbent,
    };
  }

  /** Measures a trial and logs its result, whatever it is. */
  private async attempt(trial: Trial): Promise<LogResult> {
    const findings: Findings = { notices: new Set(), commit: null, perplexity: undefined, rounds: [] };
    let failure: MoestreamError | undefined;
    try {
      await this.measure(trial, findings);
    } catch (error) {
      if (!MoestreamError.is(error) || FATAL.includes(error.code)) throw error;
      failure = error;
    }
    if (failure !== undefined && trial.against === undefined) {
      throw new MoestreamError(failure.code, `the baseline does not run: ${failure.message}`, {
        cause: failure,
      });
    }
    const result = this.resultOf(trial, findings, failure);
    this.options.log.append(result);
    this.results.push(result);
    this.options.onResult?.(result);
    return result;
  }

  private async measure(trial: Trial, findings: Findings): Promise<void> {
    const { plan } = this.options;
    const own = await this.surroundingsOf(trial.own.configuration);
    const other = trial.against && (await this.surroundingsOf(trial.against.configuration));
    findings.commit = await this.commitFor(trial.own.configuration);
    findings.perplexity = await this.perplexityOf(trial, own, findings);
    const done = this.roundsOf(trial);
    for (let round = done.length; round < plan.rounds; round++) {
      this.options.onRun?.(trial.name, round, plan.rounds);
      const sides: LogRun[] = [];
      const order = other === undefined ? [1] : balancedOrder(2, plan.rounds)[round]!;
      for (const side of order) {
        const contender = side === 0 ? trial.against! : trial.own;
        sides[side] = await this.runOf(contender, side === 0 ? other! : own, findings);
      }
      const line: LogRound = {
        kind: 'round',
        experiment: trial.own.digest,
        incumbent: trial.against?.digest ?? '',
        machine: this.machine,
        incumbentRun: sides[0] ?? null,
        experimentRun: sides[1]!,
      };
      this.options.log.append(line);
      done.push(line);
      findings.rounds = done;
    }
    findings.rounds = done;
  }

  /** Rounds of this trial that an earlier run has measured: against the same incumbent, on the same machine. */
  private roundsOf({ own, against }: Trial): LogRound[] {
    return this.options.log.content.rounds.filter(
      (round) =>
        round.experiment === own.digest &&
        round.incumbent === (against?.digest ?? '') &&
        round.machine === this.machine,
    );
  }

  private async surroundingsOf({ git, environment }: Configuration): Promise<TaskSurroundings> {
    const { plan, folder, signal } = this.options;
    const { timeoutSeconds } = plan.run;
    if (git === undefined) return { environment, timeoutSeconds };
    const build = await buildCommit(await this.resolved(git), {
      repository: plan.folder,
      builds: join(folder, 'builds'),
      commands: plan.build,
      timeoutSeconds: plan.buildTimeoutSeconds,
      ...(signal === undefined ? {} : { signal }),
    });
    return { environment, timeoutSeconds, build };
  }

  private async resolved(ref: string): Promise<string> {
    const commit = this.commits.get(ref) ?? (await resolveRef(this.options.plan.folder, ref));
    this.commits.set(ref, commit);
    return commit;
  }

  private commitFor({ git }: Configuration): Promise<string | null> {
    return git === undefined ? commitOf(this.options.plan.folder) : this.resolved(git);
  }

  private optionsOf(configuration: Configuration): RunRequest['options'] {
    const { plan } = this.options;
    return {
      memory: this.head.budgetBytes,
      ...configuration.settings,
      model: modelPath(plan, configuration),
    };
  }

  private async runOf(
    { configuration }: Contender,
    surroundings: TaskSurroundings,
    { notices }: Findings,
  ): Promise<LogRun> {
    const { plan, runner, signal } = this.options;
    const { promptTokens, decodeTokens, cache, text } = plan.run;
    const request: RunRequest = {
      options: this.optionsOf(configuration),
      promptTokens,
      decodeTokens,
      cache,
      ...(text === undefined ? {} : { source: { text: readFileSync(resolve(plan.folder, text), 'utf8') } }),
    };
    const answer = await runner.run(
      { kind: 'run', request, ...surroundings },
      signal === undefined ? {} : { signal },
    );
    for (const notice of answer.notices) notices.add(notice);
    return loggedRun(answer.value, plan.score);
  }

  /** Measured once per trial; a log that has it already is not asked twice. */
  private async perplexityOf(
    { own, name }: Trial,
    surroundings: TaskSurroundings,
    { notices }: Findings,
  ): Promise<LogPerplexity | undefined> {
    const { plan, runner, log, signal } = this.options;
    const gate = plan.gates.perplexity;
    if (gate === null) return undefined;
    const before = log.content.perplexities.find(({ experiment }) => experiment === own.digest);
    if (before !== undefined) return before;
    this.options.onRun?.(`${name}: perplexity`, 0, 1);
    const { contextLength: _, ...options } = this.optionsOf(own.configuration);
    const request: PerplexityRequest = {
      options,
      method: { tokens: gate.tokens },
      decode: gate.decode,
      ...(gate.text === undefined
        ? {}
        : { source: { text: readFileSync(resolve(plan.folder, gate.text), 'utf8') } }),
    };
    const { value, notices: said } = await runner.run(
      { kind: 'perplexity', request, ...surroundings },
      signal === undefined ? {} : { signal },
    );
    for (const notice of said) notices.add(notice);
    const finite = (number: number): number | null => (Number.isFinite(number) ? number : null);
    const line: LogPerplexity = {
      kind: 'perplexity',
      experiment: own.digest,
      perplexity: finite(value.perplexity),
      error: finite(value.error),
      digest: value.digest,
    };
    log.append(line);
    return line;
  }

  private resultOf(trial: Trial, findings: Findings, failure: MoestreamError | undefined): LogResult {
    const { rounds, perplexity, notices, commit } = findings;
    const { configuration, digest } = trial.own;
    const own = rounds.map(({ experimentRun }) => experimentRun);
    const p99 = own.flatMap(({ p99Millis }) => (p99Millis === null ? [] : [p99Millis]));
    const middle = (values: readonly number[]): number | null =>
      values.length === 0 ? null : median(values);
    return {
      kind: 'result',
      number: trial.number,
      at: new Date().toISOString(),
      commit,
      machine: this.machine,
      experiment: digest,
      incumbent: trial.against?.digest ?? '',
      name: trial.name,
      why: trial.why,
      changes: trial.changes,
      model: configuration.model,
      settings: { memory: this.head.budgetBytes, ...configuration.settings },
      environment: { ...configuration.environment },
      rounds: rounds.map(({ incumbentRun, experimentRun }) => ({
        incumbent: incumbentRun,
        experiment: experimentRun,
      })),
      score: middle(own.map(({ score }) => score)),
      p99Millis: middle(p99),
      perplexity: perplexity?.perplexity ?? null,
      perplexityError: perplexity?.error ?? null,
      cache: own[0]?.cache ?? '',
      output: outputOf(rounds),
      othersShare: own.length === 0 ? null : Math.max(...own.map(({ othersShare }) => othersShare)),
      notices: [...notices],
      ...this.decisionOn(trial, findings, failure),
    };
  }

  private decisionOn(
    trial: Trial,
    { rounds, perplexity }: Findings,
    failure: MoestreamError | undefined,
  ): Pick<LogResult, 'verdict' | 'reason' | 'confidence' | 'p99Ratio'> {
    const { plan } = this.options;
    if (failure !== undefined) {
      return {
        verdict: 'error',
        reason: `${failure.message} (${failure.code})`,
        confidence: null,
        p99Ratio: null,
      };
    }
    if (trial.against === undefined)
      return { verdict: 'baseline', reason: '', confidence: null, p99Ratio: null };
    const pairs = (value: (run: LogRun) => number | null) =>
      rounds.flatMap(({ incumbentRun, experimentRun }) => {
        const [incumbent, experiment] = [incumbentRun && value(incumbentRun), value(experimentRun)];
        return incumbent === null || experiment === null ? [] : [{ incumbent, experiment }];
      });
    const baseline = this.results[0]?.perplexity ?? Number.NaN;
    const verdict = judge(
      {
        scores: pairs(({ score }) => score),
        p99Millis: pairs(({ p99Millis }) => p99Millis),
        perplexity:
          perplexity === undefined ? undefined : { value: perplexity.perplexity ?? Number.NaN, baseline },
      },
      {
        gain: plan.gain,
        perplexityRaise: plan.gates.perplexity?.raise,
        p99Raise: plan.gates.p99?.raise,
      },
    );
    const { ratio, low, high } = verdict.ratio;
    return {
      verdict: verdict.kept ? 'keep' : 'discard',
      reason: verdict.reason,
      confidence: { ratio, low, high: Number.isFinite(high) ? high : null },
      p99Ratio: verdict.p99Ratio ?? null,
    };
  }
}

function loggedRun(run: RunMeasurement, score: ResearchPlan['score']): LogRun {
  const part = score === 'prefill' ? run.prefill : (run.decode ?? run.prefill);
  const value = scoreOf(run, score);
  if (part === undefined || !Number.isFinite(value)) {
    throw new MoestreamError('RUN_FAILED', 'a measured run has no score: it took no time');
  }
  return {
    score: value,
    p99Millis: run.tokenMillisP99 ?? null,
    bytesReadPerToken: part.bytesReadPerToken,
    hitRate: part.hitRate,
    stallShare: part.stallShare,
    cache: run.cache.sentence,
    othersShare: run.disturbance.othersShare,
    drawn: run.drawn,
  };
}

function outputOf(rounds: readonly LogRound[]): LogResult['output'] {
  if (rounds.length === 0 || rounds[0]!.incumbentRun === null) return 'unknown';
  return rounds.every(({ incumbentRun, experimentRun }) => incumbentRun?.drawn === experimentRun.drawn)
    ? 'same'
    : 'changed';
}
