{{- define "banyan.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "banyan.labels" -}}
app.kubernetes.io/name: banyan
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Both roles. */}}
{{- define "banyan.selector" -}}
app.kubernetes.io/name: banyan
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "banyan.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* The kill comes after the drain: preStop, the drain itself, 10 s for what comes late. */}}
{{- define "banyan.grace" -}}
{{- $grace := add .root.Values.drainSeconds .preStop 10 -}}
{{- if gt (int $grace) (int .root.Values.maxGraceSeconds) -}}
{{- fail (printf "drainSeconds, gateway.preStopSeconds and 10 s are %d s together, above maxGraceSeconds: the drain would be cut short" (int $grace)) -}}
{{- end -}}
{{- $grace -}}
{{- end -}}

{{/* Settings that all nodes share, and those of values.config. */}}
{{- define "banyan.environment" -}}
- name: BANYAN_CLUSTER__NAME
  value: {{ .Values.clusterName | quote }}
- name: BANYAN_CLUSTER__ETCD
  value: {{ required "etcd.endpoints: name the URLs of etcd" (join "," .Values.etcd.endpoints) | quote }}
- name: BANYAN_SCYLLA__NODES
  value: {{ required "scylla.nodes: name some nodes of ScyllaDB as HOST:PORT" (join "," .Values.scylla.nodes) | quote }}
- name: BANYAN_SCYLLA__KEYSPACE
  value: {{ .Values.scylla.keyspace | quote }}
- name: BANYAN_SCYLLA__DATACENTER
  value: {{ .Values.scylla.datacenter | quote }}
- name: BANYAN_SCYLLA__REPLICATION
  value: {{ .Values.scylla.replication | quote }}
{{- range $name, $server := dict "etcd" .Values.etcd "scylla" .Values.scylla }}
{{- if $server.tlsSecret }}
{{- $key := ternary "BANYAN_CLUSTER__ETCD_" "BANYAN_SCYLLA__" (eq $name "etcd") }}
- name: {{ $key }}CA
  value: /etc/banyan/{{ $name }}/ca.crt
{{- if $server.tlsClientCertificate }}
- name: {{ $key }}CERT
  value: /etc/banyan/{{ $name }}/tls.crt
- name: {{ $key }}KEY
  value: /etc/banyan/{{ $name }}/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.scylla.tlsServerName }}
- name: BANYAN_SCYLLA__SERVER_NAME
  value: {{ . | quote }}
{{- end }}
{{- range $section, $keys := .Values.config }}
{{- range $key, $value := $keys }}
- name: BANYAN_{{ upper $section }}__{{ upper $key }}
  value: {{ if kindIs "slice" $value }}{{ join "," $value | quote }}{{ else if kindIs "float64" $value }}{{ int64 $value | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Files of TLS to etcd and the store. */}}
{{- define "banyan.tlsMounts" -}}
{{- range $name, $server := dict "etcd" .Values.etcd "scylla" .Values.scylla }}
{{- if $server.tlsSecret }}
- {name: {{ $name }}-tls, mountPath: /etc/banyan/{{ $name }}, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{- define "banyan.tlsVolumes" -}}
{{- range $name, $server := dict "etcd" .Values.etcd "scylla" .Values.scylla }}
{{- with $server.tlsSecret }}
- name: {{ $name }}-tls
  secret: {secretName: {{ . | quote }}, defaultMode: 288}
{{- end }}
{{- end }}
{{- end -}}

{{- define "banyan.nodeEnvironment" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: BANYAN_SERVER__OPS_LISTEN
  value: "0.0.0.0:{{ .Values.ops.port }}"
- name: BANYAN_SERVER__DATA_DIR
  value: /var/lib/banyan
- name: BANYAN_SERVER__DRAIN_DEADLINE
  value: "{{ .Values.drainSeconds }}s"
{{ include "banyan.environment" . }}
{{- end -}}

{{/* Pods have no limit of processors: what grows with them goes by what was asked for, or memory would not do. */}}
{{- define "banyan.sizes" -}}
{{- $root := .root }}
{{- if dig "requests" "cpu" "" (.resources | default dict) }}
{{- range $section, $key := dict "gateway" "workers" "accounts" "hashing_concurrency" }}
{{- if not (hasKey (get $root.Values.config $section | default dict) $key) }}
- name: BANYAN_{{ upper $section }}__{{ upper $key }}
  valueFrom: {resourceFieldRef: {containerName: banyan, resource: requests.cpu}}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "banyan.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "banyan.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Starting waits for etcd and ScyllaDB and says so; only a process that does not answer at all is restarted. */}}
{{- define "banyan.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{- define "banyan.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "banyan.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "banyan.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
{{- end -}}
