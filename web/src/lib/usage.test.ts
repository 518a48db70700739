import { describe, expect, it } from 'vitest';
import type { SessionVm } from './types';
import { cpuPercent, usageParts } from './usage';

const vm: SessionVm = { vmId: 'v', vmIP: null, state: 'running', created: '', lastHeartbeat: '' };

describe('what a machine costs', () => {
  it('tells processors from two readings, and nothing from what cannot be compared', () => {
    expect(cpuPercent(null, { cpuMs: 900, at: 5_000 })).toBeNull();
    expect(cpuPercent({ cpuMs: 1_000, at: 0 }, { cpuMs: 6_000, at: 10_000 })).toBe(50);
    expect(cpuPercent({ cpuMs: 0, at: 0 }, { cpuMs: 15_000, at: 10_000 })).toBe(150);
    expect(cpuPercent({ cpuMs: 0, at: 0 }, { cpuMs: 10, at: 500 })).toBeNull();
    expect(cpuPercent({ cpuMs: 6_000, at: 0 }, { cpuMs: 100, at: 10_000 })).toBeNull();
  });

  it('shows what is known', () => {
    expect(usageParts(vm, null)).toEqual([]);
    expect(usageParts({ ...vm, memoryMib: 700, diskMib: 1536 }, 12)).toEqual([
      '700 MiB memory',
      '12 % CPU',
      '1.5 GiB disk',
    ]);
  });
});
