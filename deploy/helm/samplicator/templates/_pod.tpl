{{/* The name of all objects: that of the release. */}}
{{- define "samplicator.name" -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "samplicator.labels" -}}
app.kubernetes.io/name: {{ include "samplicator.name" . }}
{{- end }}

{{- define "samplicator.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* What the init containers need: they are root for one call each. */}}
{{- define "samplicator.initContainer" -}}
image: {{ include "samplicator.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
resources:
  requests:
    cpu: 100m
    memory: 64Mi
  limits:
    cpu: 100m
    memory: 64Mi
{{- end }}

{{/* A probe: over HTTP, or by the command that asks this pod: where HTTP may need a user, or the network is shared with the pod before. */}}
{{- define "samplicator.ready" -}}
{{- if or .Values.takeOver.enabled .Values.webConfig.secret -}}
exec:
  command: ["/opt/venv/bin/samplicator", "ready", "--control", "/run/samplicator-pod/control.sock"]
timeoutSeconds: 5
{{- else -}}
httpGet:
  path: /readyz
  port: {{ .Values.httpPort }}
  host: 127.0.0.1
{{- end }}
{{- end }}
