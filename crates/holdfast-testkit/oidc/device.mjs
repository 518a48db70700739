// A tool that shows a code for the provider's page and asks until it was entered: node -e TOOL ISSUER
import { mkdirSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

const issuer = process.argv[1];
const post = async (path, fields) => {
  const body = new URLSearchParams({ client_id: 'device', ...fields });
  const answer = await fetch(`${issuer}${path}`, { method: 'POST', body });
  return answer.json();
};
const begun = await post('/device/auth', { scope: 'openid' });
console.log(`First copy your one-time code: ${begun.user_code}`);
console.log(`Open ${begun.verification_uri} and enter it.`);
for (;;) {
  await sleep((begun.interval ?? 1) * 1000);
  const token = await post('/token', {
    grant_type: 'urn:ietf:params:oauth:grant-type:device_code',
    device_code: begun.device_code,
  });
  if (token.access_token) {
    mkdirSync(`${process.env.HOME}/.tool`, { recursive: true });
    writeFileSync(`${process.env.HOME}/.tool/auth.json`, JSON.stringify(token), { mode: 0o600 });
    console.log(`Signed in: ${token.access_token}`);
    process.exit(0);
  }
  if (token.error !== 'authorization_pending' && token.error !== 'slow_down') {
    console.log(`sign-in failed: ${token.error}`);
    process.exit(1);
  }
}
