{{- define "invalidator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Short enough for what is put behind it, and for a StatefulSet's pods. */ -}}
{{- define "invalidator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "invalidator.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "invalidator.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "invalidator.selector" -}}
app.kubernetes.io/name: {{ include "invalidator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "invalidator.labels" -}}
{{ include "invalidator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "invalidator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "invalidator.configMap" -}}
{{- .Values.existingConfigMap | default (include "invalidator.fullname" .) -}}
{{- end -}}

{{- define "invalidator.configData" -}}
{{- dict "config.yaml" (required "config is empty: give the configuration file, --set-file config=invalidator.yaml, or existingConfigMap" .Values.config) | toYaml -}}
{{- end -}}
