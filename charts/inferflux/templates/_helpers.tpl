{{- define "inferflux.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "inferflux.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "inferflux.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "inferflux.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "inferflux.selector" -}}
app.kubernetes.io/name: {{ include "inferflux.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "inferflux.labels" -}}
{{ include "inferflux.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "inferflux.image" -}}
{{- $name := .image.repository -}}
{{- if .root.Values.image.registry }}{{ $name = printf "%s/%s" .root.Values.image.registry $name }}{{ end -}}
{{- if .image.digest -}}
{{ printf "%s@%s" $name .image.digest }}
{{- else -}}
{{ printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}
{{- end -}}

{{- define "inferflux.natsName" -}}
{{- .Values.nats.fullnameOverride | default (printf "%s-nats" .Release.Name) -}}
{{- end -}}

{{- define "inferflux.brokerUrl" -}}
{{- if .Values.broker.url -}}
{{ .Values.broker.url }}
{{- else if .Values.nats.enabled -}}
tls://{{ include "inferflux.natsName" . }}:4222
{{- else -}}
{{ fail "broker.url must be set when nats.enabled is false" }}
{{- end -}}
{{- end -}}

{{/* What every process of InferFlux has in its environment; the secret of its role is named by .secret. */}}
{{- define "inferflux.environment" -}}
envFrom:
  - secretRef:
      name: {{ .secret }}
env:
  - name: INFERFLUX_BROKER_URL
    value: {{ include "inferflux.brokerUrl" .root | quote }}
  - name: INFERFLUX_BROKER_REPLICAS
    value: {{ .root.Values.broker.replicas | quote }}
  - name: INFERFLUX_BROKER_TLS_CA
    value: /etc/inferflux/tls/ca.crt
  {{- if .root.Values.apiKeysSecret }}
  - name: INFERFLUX_AUTH_API_KEYS
    valueFrom:
      secretKeyRef:
        name: {{ .root.Values.apiKeysSecret }}
        key: api_keys
  {{- end }}
  {{- if .root.Values.policyPassphraseSecret }}
  - name: INFERFLUX_POLICY_PASSPHRASE
    valueFrom:
      secretKeyRef:
        name: {{ .root.Values.policyPassphraseSecret }}
        key: passphrase
  {{- end }}
{{- end -}}

{{- define "inferflux.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "inferflux.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "inferflux.volumes" -}}
- name: settings
  configMap:
    name: {{ include "inferflux.fullname" . }}
- name: ca
  secret:
    secretName: {{ .Values.broker.caSecret }}
    items:
      - key: ca.crt
        path: ca.crt
- name: tmp
  emptyDir: {}
- name: data
  emptyDir: {}
{{- end -}}

{{- define "inferflux.mounts" -}}
- name: settings
  mountPath: /config
  readOnly: true
- name: ca
  mountPath: /etc/inferflux/tls
  readOnly: true
- name: tmp
  mountPath: /tmp
- name: data
  mountPath: /var/lib/inferflux
{{- end -}}
