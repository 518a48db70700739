/**
 * Two people sign the same tool in at once, each in a page of their own, and it fails at first.
 * Needs a server with real machines whose provider `stumbles` (crates/holdfast-testkit) fails when it
 * is started first, and then asks for a code and hands it over; HOLDFAST_E2E_FILES names a directory
 * for what is downloaded.
 */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import {
  START_MS,
  call,
  cleanUp,
  openBrowser,
  picture,
  sessionOf,
  signIn,
  url,
} from '../harness.js';

const files = process.env.HOLDFAST_E2E_FILES;

describe('sign-ins of two people at once', { timeout: 3 * START_MS }, () => {
  /** Name, browser, and once it is there the session of each. */
  const people = [];

  before(async () => {
    assert.ok(files, 'HOLDFAST_E2E_FILES is not set');
    for (const name of ['ada', 'grace']) {
      const { body } = await call('POST', '/api/tokens', { owner: `${name} ${process.pid}` });
      const browser = await openBrowser({ acceptDownloads: true });
      people.push({ name, browser, page: browser.page, secret: body.secret });
      await signIn(browser.page, url, body.secret);
    }
  });

  after(async () => {
    for (const { browser } of people) await browser.close();
    await cleanUp();
  });

  /** Does the same for both, at once. */
  const both = (act) => Promise.all(people.map((person) => act(person)));
  /** What the server says of the sign-in in a session, to one of them. */
  const state = async (id, { secret }) => {
    const headers = { authorization: `Bearer ${secret}` };
    const answer = await fetch(`${url}/api/sessions/${id}/sign-in`, { headers });
    return { status: answer.status, body: await answer.json() };
  };

  it('says why it failed, and what to do', async () => {
    await both(async (person) => {
      const { page, name } = person;
      await page.getByRole('button', { name: 'New session' }).first().click();
      const dialog = page.getByRole('dialog', { name: 'New session' });
      await dialog.locator('.tile', { hasText: 'Tool that stumbles' }).click();
      await dialog.getByRole('button', { name: 'Start session' }).click();
      await page.waitForURL(/\?session=/);
      person.id = sessionOf(page);
      await page.locator('.sign-in[data-outcome="failed"]').waitFor({ timeout: START_MS });
      await page.getByRole('heading', { name: 'Tool that stumbles: The sign-in failed' }).waitFor();
      const notice = page.locator('.sign-in .notice.danger');
      assert.match(await notice.textContent(), /exit code 101\. Look at .*then try again/s);
      await page.locator('.steps li.failed', { hasText: 'Link' }).waitFor();
      await page.locator('.sign-in summary', { hasText: 'What the tool printed' }).click();
      await page.locator('.sign-in pre', { hasText: 'panicked at login.rs' }).waitFor();
      await picture(page, `failed for ${name}`);
    });
  });

  it('gets a new link from the same machine', async () => {
    await both(async (person) => {
      const { page, id } = person;
      const before = (await call('GET', `/api/sessions/${id}/vm`)).body.vmId;
      await page.getByRole('button', { name: 'Try again' }).click();
      await page.locator('.sign-in[data-step="sign_in"]').waitFor({ timeout: START_MS });
      person.link = await page.locator('.sign-in a.url').textContent();
      assert.match(person.link, /run=2&state=[0-9a-f]{32}$/);
      assert.equal(await page.locator('.sign-in .notice.danger').count(), 0);
      assert.equal((await call('GET', `/api/sessions/${id}/vm`)).body.vmId, before);
    });
  });

  it('shows nobody anything of the other', async () => {
    const [ada, grace] = people;
    assert.notEqual(ada.link, grace.link);
    for (const [one, other] of [
      [ada, grace],
      [grace, ada],
    ]) {
      assert.deepEqual((await state(one.id, one)).body.url, one.link);
      assert.equal((await state(other.id, one)).status, 404);
      assert.ok(!(await one.page.content()).includes(other.link), 'the other’s link is shown');
      const page = await one.browser.context.newPage();
      await page.goto(url);
      await page.locator(`[data-session="${one.id}"]`).waitFor();
      assert.equal(await page.locator('[data-session]').count(), 1, 'more than its own is listed');
      await page.goto(`${url}/?session=${other.id}`);
      await page.getByRole('heading', { name: 'There is no such session' }).waitFor();
      await page.close();
    }
  });

  it('ends well, with what each handed over', async () => {
    await both(async ({ page, name, id, secret }) => {
      await page.getByLabel('Code from the provider').fill(`code of ${name}`);
      await page.getByRole('button', { name: 'Hand it to the tool' }).click();
      await page.locator('.sign-in[data-outcome="succeeded"]').waitFor({ timeout: START_MS });
      await page
        .getByRole('heading', { name: 'This session has ended' })
        .waitFor({ timeout: START_MS });
      await page.getByRole('button', { name: 'Get the credentials' }).click();
      const waited = page.waitForEvent('download');
      await page.getByRole('button', { name: 'Download' }).click();
      const path = join(files, `${name}.json`);
      await (await waited).saveAs(path);
      assert.equal(JSON.parse(await readFile(path)).code, `code of ${name}`);
      const again = await fetch(`${url}/api/sessions/${id}/credentials`, {
        method: 'POST',
        headers: { authorization: `Bearer ${secret}` },
      });
      assert.equal(again.status, 410, 'a second time');
    });
  });

  it('had no uncaught error', () => {
    assert.deepEqual(
      people.flatMap(({ browser }) => browser.errors),
      [],
    );
  });
});
