// Auth0's management client for Node, as published. Its one argument: the folder whose node_modules has auth0.
//
// One request a line on stdin, one answer a line on stdout, both JSON:
//
//     {"domain": .., "token": .., "call": ["keys", "signing", "list"], "arguments": [..]}
//     {"data": ..}, or {"error": {"name": .., "status": .., "body": .., "headers": {..}}}
//     {"inspect": PEM}
//     {"fingerprint": .., "fingerprint256": .., "subject": ..}
//
// Names below example.com are found on this machine, as a hosts file would have it. NODE_EXTRA_CA_CERTS names the CA.

import dns from 'node:dns'
import { createRequire } from 'node:module'
import { X509Certificate } from 'node:crypto'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'

const { ManagementClient, ManagementError } = createRequire(resolve(process.argv[2], 'package.json'))('auth0')

const lookup = dns.lookup
dns.lookup = (name, ...rest) => lookup(name.endsWith('.example.com') ? '127.0.0.1' : name, ...rest)

async function call({ domain, token, call: [section, resource, method], arguments: given }) {
  const client = new ManagementClient({ domain, token: async () => token })
  try {
    const { data, rawResponse } = await client[section][resource][method](...given).withRawResponse()
    return { data, status: rawResponse.status }
  } catch (error) {
    if (!(error instanceof ManagementError)) throw error
    const headers = Object.fromEntries(error.rawResponse?.headers ?? [])
    return { error: { name: error.name, status: error.statusCode, body: error.body, headers } }
  }
}

function inspect(pem) {
  const { fingerprint, fingerprint256, subject } = new X509Certificate(pem)
  return { fingerprint, fingerprint256, subject }
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line)
  const answer = request.inspect ? inspect(request.inspect) : await call(request)
  console.log(JSON.stringify(answer))
}
