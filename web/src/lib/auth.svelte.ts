/** Whether the server knows who is asking. Lost at any time, for example by a revoked token. */

import { untrack } from 'svelte';
import { api, onSignedOut } from './api';

let needed = $state(false);
let epoch = $state(0);

onSignedOut(() => (needed = true));

export const auth = {
  /** An access token has to be given before anything works. */
  get needed(): boolean {
    return needed;
  },
  /** Counts sign-ins: what depends on one is loaded again. */
  get epoch(): number {
    return epoch;
  },
  /** Signs in; throws when the token is not valid. */
  async signIn(token: string): Promise<void> {
    await api.login(token.trim());
    needed = false;
    epoch += 1;
  },
  /** A stream, which does not go through the client, found the sign-in lost. */
  lost(): void {
    needed = true;
  },
};

/** While a component is shown: goes on with what stopped, after each sign-in. */
export function afterSignIn(resume: () => void): void {
  let seen = epoch;
  $effect(() => {
    if (epoch === seen) return;
    seen = epoch;
    untrack(resume);
  });
}
