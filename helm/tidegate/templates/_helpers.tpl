{{- define "tidegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "tidegate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "tidegate.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of an object of a component: (list . "server") */}}
{{- define "tidegate.labels" -}}
{{- $ := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{ include "tidegate.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
app.kubernetes.io/part-of: tidegate
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tidegate.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "tidegate.name" $ }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* An image: (list . .Values.image "-cpu") */}}
{{- define "tidegate.image" -}}
{{- $ := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (printf "%s%s" $.Chart.AppVersion (index . 2)) }}
{{- end -}}
{{- end -}}

{{- define "tidegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "tidegate.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The restricted profile of Pod Security; the numbers are the Dockerfile's. */}}
{{- define "tidegate.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "tidegate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The claim that holds the models; empty where there's none. */}}
{{- define "tidegate.claim" -}}
{{- if .Values.models.existingClaim -}}
{{- .Values.models.existingClaim -}}
{{- else if .Values.models.claim.create -}}
{{- include "tidegate.fullname" . }}-models
{{- end -}}
{{- end -}}

{{/* The claim that holds the state; empty where there's none. */}}
{{- define "tidegate.stateClaim" -}}
{{- if .Values.state.pvc.enabled -}}
{{- if or (gt (int .Values.server.replicas) 1) (ne .Values.autoscaling.kind "none") -}}
{{- fail "state.pvc is for one replica that nothing scales: a claim has one writer" -}}
{{- end -}}
{{- .Values.state.pvc.existingClaim | default (printf "%s-state" (include "tidegate.fullname" .)) -}}
{{- end -}}
{{- end -}}

{{- define "tidegate.modelsVolume" -}}
- name: models
  {{- with include "tidegate.claim" . }}
  persistentVolumeClaim: {claimName: {{ . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.models.sizeLimit }}}
  {{- end }}
{{- end -}}

{{/* How many GPUs, as a resource; nothing without. */}}
{{- define "tidegate.resources" -}}
{{- $resources := deepCopy (index . 1) -}}
{{- $gpu := (index . 0).Values.server.gpu -}}
{{- if and $gpu.enabled (index . 2) -}}
{{- $_ := set $resources "limits" (merge (dict $gpu.resource $gpu.count) ($resources.limits | default dict)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* The pods' place: a GPU's node where there is one, and the rest. */}}
{{- define "tidegate.place" -}}
{{- $server := .Values.server -}}
{{- $nodes := merge (dict) $server.nodeSelector (ternary $server.gpu.nodeSelector dict $server.gpu.enabled) -}}
{{- $tolerations := concat (ternary $server.gpu.tolerations list $server.gpu.enabled) $server.tolerations -}}
{{- with $nodes }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and $server.gpu.enabled $server.gpu.runtimeClassName }}
runtimeClassName: {{ $server.gpu.runtimeClassName }}
{{- end }}
{{- end -}}

{{/* server.yaml. What the chart sets itself stands in no values: the schema refuses it there. */}}
{{- define "tidegate.serverConfig" -}}
{{- $own := dict "host" "0.0.0.0" "http_port" 8000 "grpc_port" 8001 "metrics_port" 8002 "repository" "/models" -}}
{{- $_ := set $own "state" "/var/lib/tidegate/state.db" -}}
{{- $_ := set $own "drain_delay" .Values.server.drain.delay -}}
{{- $_ := set $own "drain_timeout" .Values.server.drain.timeout -}}
{{- if .Values.auth.existingSecret -}}
{{- $admin := dict "token_file" (printf "/etc/tidegate-tokens/%s" .Values.auth.key) -}}
{{- if .Values.admin.enabled -}}{{- $_ := set $admin "port" .Values.admin.port -}}{{- end -}}
{{- $_ := set $own "admin" $admin -}}
{{- else if .Values.admin.enabled -}}
{{- fail "admin.enabled needs auth.existingSecret: without tokens nobody could use the admin port" -}}
{{- end -}}
{{- if .Values.tls.existingSecret -}}
{{- $tls := dict "certfile" "/etc/tidegate-tls/tls.crt" "keyfile" "/etc/tidegate-tls/tls.key" -}}
{{- if .Values.tls.clientCA -}}{{- $_ := set $tls "ca_certs" "/etc/tidegate-tls/ca.crt" -}}{{- end -}}
{{- $_ := set $own "tls" $tls -}}
{{- end -}}
{{- with .Values.state.redis -}}
{{- if .url -}}
{{- $redis := dict -}}
{{- if .existingSecret -}}{{- $_ := set $redis "password_file" (printf "/etc/tidegate-redis/%s" .key) -}}{{- end -}}
{{- if .caKey -}}{{- $_ := set $redis "ca_certs" (printf "/etc/tidegate-redis/%s" .caKey) -}}{{- end -}}
{{- $_ := set $own "state" .url -}}
{{- $_ := set $own "redis" (merge $redis ($.Values.server.config.redis | default dict | deepCopy)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.server.gpu.enabled -}}
{{- $_ := set $own "lanes" (merge (.Values.server.config.lanes | default dict | deepCopy) (dict "device" "cuda:0")) -}}
{{- end -}}
{{- $log := merge (get .Values.server.config "log" | default dict | deepCopy) (dict "format" "json") -}}
{{- toYaml (merge $own (dict "log" $log) (deepCopy .Values.server.config)) -}}
{{- end -}}

{{- define "tidegate.monitorConfig" -}}
{{- $sources := dict "targets" (list (printf "dns://%s-headless.%s.svc:8002" (include "tidegate.fullname" .) .Release.Namespace)) "nvml" "off" "host" false -}}
{{- $own := dict "state" "/var/lib/tidegate/monitor.db" "listen" "0.0.0.0:9099" -}}
{{- $given := deepCopy .Values.monitor.config -}}
{{- $_ := set $own "sources" (merge ($given.sources | default dict | deepCopy) $sources) -}}
{{- toYaml (merge $own $given (.Files.Get "files/monitor.yaml" | fromYaml)) -}}
{{- end -}}
