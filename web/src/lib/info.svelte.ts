/** What the server is and can do; read once per sign-in. */

import { api } from './api';
import type { Feature, Provider, Version } from './types';

let version = $state.raw<Version | null>(null);
let providers = $state.raw<readonly Provider[]>([]);

export const info = {
  get version(): Version | null {
    return version;
  },
  get providers(): readonly Provider[] {
    return providers;
  },
  /** Whether the server has an ability. */
  has(feature: Feature): boolean {
    return version?.features?.includes(feature) ?? false;
  },
  /** A provider's name for people. */
  title(provider: string): string {
    return providers.find((p) => p.name === provider)?.title ?? provider;
  },
  /** Reads what could not be read before: the server may have been away. */
  async complete(): Promise<void> {
    if (version === null || providers.length === 0) await this.load();
  },
  /** Reads both; a failure is left to what is on the page, which reads on its own and reports it. */
  async load(): Promise<void> {
    const [v, p] = await Promise.allSettled([api.version(), api.providers()]);
    if (v.status === 'fulfilled') version = v.value;
    if (p.status === 'fulfilled') providers = p.value;
  },
};
