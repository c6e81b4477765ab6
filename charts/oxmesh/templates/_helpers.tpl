{{/* The control plane's namespace. */}}
{{- define "oxmesh.namespace" -}}
{{ .Values.osm.osmNamespace | default .Release.Namespace }}
{{- end -}}

{{/* Labels of every object, as OSM's. */}}
{{- define "oxmesh.labels" -}}
app.kubernetes.io/name: openservicemesh.io
app.kubernetes.io/instance: {{ .Values.osm.meshName | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* An image by its key in osm.image.name: {{ include "oxmesh.image" (list . "osmController") }} */}}
{{- define "oxmesh.image" -}}
{{- $top := index . 0 -}}
{{- $key := index . 1 -}}
{{- $image := $top.Values.osm.image -}}
{{- $name := printf "%s/%s" $image.registry (index $image.name $key) -}}
{{- with index $image.digest $key -}}
{{ $name }}@{{ . }}
{{- else -}}
{{ $name }}:{{ $image.tag | default $top.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* OSM's log levels in the controller's words. */}}
{{- define "oxmesh.logLevel" -}}
{{- $level := .Values.osm.controllerLogLevel -}}
{{ get (dict "fatal" "error" "panic" "error" "disabled" "off") $level | default $level }}
{{- end -}}

{{/* Not empty when more than one replica may run. */}}
{{- define "oxmesh.replicated" -}}
{{- $controller := .Values.osm.osmController -}}
{{- if $controller.autoScale.enable -}}
{{- if gt (int $controller.autoScale.maxReplicas) 1 -}}true{{- end -}}
{{- else if gt (int $controller.replicaCount) 1 -}}true{{- end -}}
{{- end -}}

{{/* Keys of OSM that were set and change nothing here, one a line. */}}
{{- define "oxmesh.inert" -}}
{{- $osm := .Values.osm -}}
{{- range $key := list "curlImage" "prometheus" "grafana" "fluentBit" "certmanager" "vault" "cleanup" "preinstall" "osmBootstrap" "multicluster" "validatorWebhook" "sidecarWindowsImage" }}
{{- if index $osm $key }}
osm.{{ $key }}
{{- end }}
{{- end }}
{{- range $key := list "replicaCount" "resource" "podLabels" "enablePodDisruptionBudget" "autoScale" "affinity" "nodeSelector" "tolerations" }}
{{- if hasKey $osm.injector $key }}
osm.injector.{{ $key }} (the injector is part of osm-controller: see osm.osmController.{{ $key }})
{{- end }}
{{- end }}
{{- range $key := list "osmInjector" "osmBootstrap" "osmCRDs" "osmPreinstall" "osmHealthcheck" }}
{{- if or (hasKey $osm.image.name $key) (hasKey $osm.image.digest $key) }}
osm.image.*.{{ $key }} (no such image)
{{- end }}
{{- end }}
{{- with .Values.smi }}{{ if hasKey . "validateTrafficTarget" }}
smi.validateTrafficTarget (objects are judged by the controller, which says so in their status)
{{- end }}{{ end }}
{{- if $osm.tracing.image }}
osm.tracing.image (no collector is deployed)
{{- end }}
{{- if ne (int $osm.certificateProvider.certKeyBitSize) 2048 }}
osm.certificateProvider.certKeyBitSize (keys are ECDSA P-256)
{{- end }}
{{- end -}}
