{{- /*
What a parent chart puts into its pods, with .Subcharts.invalidator as the context:

  metadata.annotations:  {{- include "invalidator.podAnnotations" .Subcharts.invalidator | nindent 8 }}
  spec.initContainers:   {{- include "invalidator.sidecar" .Subcharts.invalidator | nindent 8 }}
  spec.volumes:          {{- include "invalidator.volumes" .Subcharts.invalidator | nindent 8 }}

A native sidecar is an init container that stays: the application starts after its startup probe, and it ends after
the application.
*/ -}}
{{- define "invalidator.sidecar" -}}
- name: invalidator
  restartPolicy: Always
  {{- include "invalidator.container" . | nindent 2 }}
  ports:
    - {name: invalidator, containerPort: {{ .Values.ports.probes }}, protocol: TCP}
{{- end -}}

{{- define "invalidator.volumes" -}}
- name: invalidator-config
  configMap:
    name: {{ include "invalidator.configMap" . }}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Another configuration is another annotation: the pods are replaced. A ConfigMap of yours is your own affair. */ -}}
{{- define "invalidator.podAnnotations" -}}
checksum/invalidator-config: {{ .Values.existingConfigMap | default .Values.config | sha256sum }}
{{- end -}}

{{- define "invalidator.container" -}}
image: {{ include "invalidator.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [run, "--log-level={{ .Values.log.level }}", "--log-format={{ .Values.log.format }}"]
env:
  {{- include "invalidator.environment" (list . list) | nindent 2 }}
{{- with .Values.existingSecret }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
startupProbe:
  httpGet: {path: /startupz, port: {{ .Values.ports.probes }}}
  {{- toYaml .Values.startupProbe | nindent 2 }}
livenessProbe:
  httpGet: {path: /healthz, port: {{ .Values.ports.probes }}}
  {{- toYaml .Values.livenessProbe | nindent 2 }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - {name: invalidator-config, mountPath: /etc/invalidator, readOnly: true}
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /*
With the chart's context, and variables that go before those of .Values.env, which go before our own. Each name comes once.
*/ -}}
{{- define "invalidator.environment" -}}
{{- $root := first . -}}
{{- $first := last . -}}
{{- $address := eq $root.Values.mode "relay" | ternary "0.0.0.0" "127.0.0.1" -}}
{{- $ours := list
  (dict "name" "INVALIDATOR_PROBES" "value" (printf "0.0.0.0:%v" $root.Values.ports.probes))
  (dict "name" "INVALIDATOR_API" "value" (printf "%s:%v" $address $root.Values.ports.api)) -}}
{{- if eq $root.Values.mode "relay" -}}
{{- $host := printf "%s.%s.svc" (include "invalidator.fullname" $root) $root.Release.Namespace -}}
{{- $ours = append $ours (dict "name" "INVALIDATOR_HOST" "value" $host) -}}
{{- end -}}
{{- $named := dict -}}
{{- range concat $ours $root.Values.env $first }}{{ $_ := set $named .name . }}{{ end -}}
{{- $list := list -}}
{{- range concat $ours $root.Values.env $first -}}
{{- if hasKey $named .name -}}
{{- $list = append $list (get $named .name) -}}
{{- $_ := unset $named .name -}}
{{- end -}}
{{- end -}}
{{- toYaml $list -}}
{{- end -}}
