/** What a machine costs its host, as it is shown. Pure. */

import { mib } from './format';
import type { SessionVm } from './types';

/** A reading of a machine's processor time. */
export interface Reading {
  cpuMs: number;
  /** When it was read, in ms. */
  at: number;
}

/** Readings closer together than this say nothing. */
const LEAST_MS = 1_000;

/**
 * Processors that were kept busy between two readings, in percent of one; `null` when that cannot be
 * told: they are too close, or the counter began anew.
 */
export function cpuPercent(before: Reading | null, now: Reading): number | null {
  if (before === null || now.at - before.at < LEAST_MS || now.cpuMs < before.cpuMs) return null;
  return Math.round(((now.cpuMs - before.cpuMs) / (now.at - before.at)) * 100);
}

/** Memory, processor and disk, as far as they are known. */
export function usageParts(vm: SessionVm, percent: number | null): string[] {
  const parts: string[] = [];
  if (vm.memoryMib !== undefined) parts.push(`${mib(vm.memoryMib)} memory`);
  if (percent !== null) parts.push(`${percent} % CPU`);
  if (vm.diskMib !== undefined) parts.push(`${mib(vm.diskMib)} disk`);
  return parts;
}
