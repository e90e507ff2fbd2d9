/** Names the test files that began and never ended: when a process dies, vitest says only that one did. */
import { relative } from 'node:path';
import type { Reporter, TestModule } from 'vitest/node';

export class UnfinishedFiles implements Reporter {
  private readonly begun = new Set<string>();

  onTestModuleStart({ moduleId }: TestModule): void {
    this.begun.add(moduleId);
  }

  onTestModuleEnd({ moduleId }: TestModule): void {
    this.begun.delete(moduleId);
  }

  onTestRunEnd(): void {
    for (const path of this.begun) {
      process.stderr.write(`${relative(process.cwd(), path)} began and did not end: its process died\n`);
    }
  }
}
