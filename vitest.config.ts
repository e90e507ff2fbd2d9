import { defineConfig } from 'vitest/config';
import { UnfinishedFiles } from './test/support/unfinished-files.ts';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Native add-ons and worker threads: a process per file, so that a crash ends one of them, which is named.
    pool: 'forks',
    reporters: ['default', new UnfinishedFiles()],
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    slowTestThreshold: 5_000,
  },
});
