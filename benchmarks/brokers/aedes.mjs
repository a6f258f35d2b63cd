// The broker aedes on a port of this machine: node aedes.mjs FOLDER PORT NODELAY, with aedes below FOLDER/node_modules.
import { createServer } from 'node:net'
import { pathToFileURL } from 'node:url'

const [folder, port, nodelay] = process.argv.slice(2)
const { Aedes } = await import(pathToFileURL(`${folder}/node_modules/aedes/aedes.js`))
const broker = await Aedes.createBroker()
const server = createServer({ noDelay: nodelay === 'true' }, broker.handle)
server.listen(Number(port), '127.0.0.1')

process.on('SIGTERM', () => {
  server.close()
  broker.close(() => process.exit(0))
})
