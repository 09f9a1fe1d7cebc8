// Custom resources against the schemas of their definitions: a JSON list of objects on stdin, a line for each fault on stdout.
// The argument is the folder with the packages (.tools/node_modules).
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const packages = {
  'monitoring.coreos.com/v1': 'prometheus-operator',
  'keda.sh/v1alpha1': 'keda',
  'gateway.networking.k8s.io/v1': 'gateway-api',
};
for (const object of JSON.parse(readFileSync(0, 'utf8'))) {
  const name = `${object.kind} ${object.metadata.name}`;
  const from = `${process.argv[2]}/@kubernetes-models/${packages[object.apiVersion]}/${object.apiVersion}/${object.kind}.js`;
  try {
    const Model = (await import(pathToFileURL(from)))[object.kind];
    new Model(object).validate();
  } catch (error) {
    console.log(`${name}: ${error.message.split('\n')[0]}`);
  }
}
