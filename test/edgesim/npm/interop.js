// Drives Microsoft's unmodified packages against the emulator, as a module on a device and as an operator in the cloud.
// argv[2] is the transport, mqtt or ws. The environment is a module's, with NODE_EXTRA_CA_CERTS for the operator's side,
// EDGESIM_SERVICE, a service connection string, and EDGESIM_OTHER, the environment of a second module as JSON. What only
// the emulator can do is asked of the test on stdout, "ask <what>", and answered by a line on stdin.
'use strict';

const assert = require('node:assert/strict');
const readline = require('node:readline');
const { ModuleClient, Message } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { Registry, Client: ServiceClient } = require('azure-iothub');

const transport = { mqtt: Mqtt, ws: MqttWs }[process.argv[2]];
const device = process.env.IOTEDGE_DEVICEID;
const module_ = process.env.IOTEDGE_MODULEID;
const patience = 30000;

const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function ask(what) {
  console.log('ask ' + what);
  const line = await answers.next();
  assert.equal(line.value, 'done ' + what);
}

function within(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('timed out: ' + what)), patience);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function step(what, run) {
  const result = await within(what, run());
  console.log('ok ' + what);
  return result;
}

// eventually repeats until run no longer throws.
async function eventually(run) {
  const end = Date.now() + patience;
  for (;;) {
    try {
      return await run();
    } catch (err) {
      if (Date.now() > end) throw err;
      await new Promise((r) => setTimeout(r, 100));
    }
  }
}

const open = async (env) => {
  const own = { ...process.env };
  Object.assign(process.env, env);
  const client = await ModuleClient.fromEnvironment(transport);
  process.env = own;
  await client.open();
  return client;
};

// patched waits for a desired patch with this marker.
function patched(twin, marker) {
  return new Promise((resolve) => {
    const on = (delta) => {
      if (delta.marker === marker) {
        twin.removeListener('properties.desired', on);
        resolve(delta);
      }
    };
    twin.on('properties.desired', on);
  });
}

async function main() {
  const registry = Registry.fromConnectionString(process.env.EDGESIM_SERVICE);
  const service = ServiceClient.fromConnectionString(process.env.EDGESIM_SERVICE);
  const update = async (desired) =>
    (await registry.updateModuleTwin(device, module_, { properties: { desired } }, '*')).responseBody;
  const invoke = async (name, payload) =>
    (await service.invokeDeviceMethod(device, module_, { methodName: name, payload, responseTimeoutInSeconds: 10 })).result;

  const client = await step('open', () => open({}));
  const twin = await step('twin get', async () => {
    const t = await client.getTwin();
    assert.equal(t.properties.desired.mode, 'ReadOnly');
    assert.equal(t.properties.desired.$version, 1);
    return t;
  });

  await step('desired patch from a service-side twin update', async () => {
    twin.on('properties.desired', () => {});
    const got = patched(twin, 'first');
    // The package subscribes behind the listener; until then a patch is lost, as on a device.
    await ask('subscribed');
    const after = await update({ marker: 'first', nested: { a: 1, b: 'x' } });
    const delta = await got;
    assert.equal(delta.$version, after.properties.desired.$version);
    assert.deepEqual(delta.nested, { a: 1, b: 'x' });
    assert.equal(twin.properties.desired.nested.b, 'x');
    assert.equal(after.properties.desired.mode, 'ReadOnly');
  });

  await step('a null in a patch deletes', async () => {
    const got = patched(twin, 'second');
    const after = await update({ marker: 'second', nested: { b: null } });
    await got;
    assert.deepEqual(after.properties.desired.nested, { a: 1 });
  });

  await step('reported, seen by the service', async () => {
    await new Promise((resolve, reject) =>
      twin.properties.reported.update({ state: 'Online', run: { n: 7 } }, (e) => (e ? reject(e) : resolve())));
    await eventually(async () => {
      const t = (await registry.getModuleTwin(device, module_)).responseBody;
      assert.deepEqual(t.properties.reported.run, { n: 7 });
      assert.equal(t.connectionState, 'Connected');
    });
  });

  await step('reported that is invalid does not arrive', async () => {
    // The package does not look at the status of the answer.
    const report = (patch) => new Promise((resolve, reject) =>
      twin.properties.reported.update(patch, (e) => (e ? reject(e) : resolve())));
    await report({ list: [1, null] });
    await report({ after: true });
    await eventually(async () => {
      const { reported } = (await registry.getModuleTwin(device, module_)).responseBody.properties;
      assert.equal(reported.after, true);
      assert.ok(!('list' in reported));
    });
  });

  await step('direct method from the service', async () => {
    client.onMethod('echo', (request, response) => response.send(200, { got: request.payload }, () => {}));
    await ask('methods');
    const result = await invoke('echo', { text: 'é' });
    assert.deepEqual(result, { status: 200, payload: { got: { text: 'é' } } });
  });

  await step('method of a module that is not there', async () => {
    await assert.rejects(
      service.invokeDeviceMethod(device, 'nobody', { methodName: 'echo', responseTimeoutInSeconds: 10 }),
      (err) => err.response && err.response.statusCode === 404);
  });

  await step('output event', async () => {
    const m = new Message(JSON.stringify({ action: 'ImagePushed' }));
    m.contentType = 'application/json';
    m.contentEncoding = 'utf-8';
    m.properties.add('repository', 'acme/vision & more');
    await client.sendOutputEvent('registryEvents', m);
    await ask('output');
  });

  await step('a module calls another module', async () => {
    const other = await open(JSON.parse(process.env.EDGESIM_OTHER));
    try {
      const result = await other.invokeMethod(device, module_, {
        methodName: 'echo', payload: [1, 2], responseTimeoutInSeconds: 10, connectTimeoutInSeconds: 10,
      });
      assert.deepEqual(result, { status: 200, payload: { got: [1, 2] } });
    } finally {
      await other.close();
    }
  });

  await step('reconnect after a cut', async () => {
    await ask('kick');
    const got = patched(twin, 'third');
    await update({ marker: 'third' });
    await got;
    assert.equal((await eventually(() => invoke('echo', 1))).status, 200);
    await new Promise((resolve, reject) => twin.get((e) => (e ? reject(e) : resolve())));
    assert.equal(twin.properties.desired.marker, 'third');
  });

  await step('the cached twin while the cloud is away', async () => {
    await ask('offline');
    await new Promise((resolve, reject) => twin.get((e) => (e ? reject(e) : resolve())));
    assert.equal(twin.properties.desired.marker, 'third');
    await assert.rejects(service.invokeDeviceMethod(device, module_, { methodName: 'echo', responseTimeoutInSeconds: 10 }));
    await ask('online');
  });

  await step('etag', async () => {
    const t = (await registry.getModuleTwin(device, module_)).responseBody;
    await update({ marker: 'fourth' });
    await assert.rejects(
      registry.updateModuleTwin(device, module_, { properties: { desired: { marker: 'stale' } } }, t.etag),
      (err) => err.response && err.response.statusCode === 412);
  });

  await step('registry reads', async () => {
    const modules = (await registry.getModulesOnDevice(device)).responseBody;
    assert.ok(modules.some((m) => m.moduleId === module_ && m.managedBy === 'iotEdge'));
    assert.equal((await registry.getModule(device, module_)).responseBody.moduleId, module_);
    assert.equal((await registry.get(device)).responseBody.capabilities.iotEdge, true);
  });

  await step('close', () => client.close());
}

main().then(
  () => { console.log('passed'); process.exit(0); },
  (err) => { console.error(err); process.exit(1); });
