package config

import (
	"encoding/json"

	"gopkg.in/yaml.v3"
)

// schema is a JSON Schema, draft 2020-12.
type schema map[string]any

// Schema is the JSON Schema of a configuration, for editors.
func Schema() []byte {
	return document("cdcsync configuration", file{&Config{}})
}

// MappingsSchema is the JSON Schema of a file that include names.
func MappingsSchema() []byte {
	return document("cdcsync mappings", mappingFile{new([]Mapping)})
}

func document(title string, s section) []byte {
	root := sectionSchema(s)
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = title
	root["patternProperties"] = schema{"^x-": schema{"description": "Yours, for anchors."}}
	encoded, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		return nil // cannot be: a schema holds maps, slices, strings, numbers and booleans
	}
	return append(encoded, '\n')
}

func sectionSchema(s section) schema {
	properties := schema{}
	var required []string
	var rules []schema
	for _, k := range s.keys() {
		property := k.value.schema()
		property["description"] = k.doc
		if k.fallback != "" {
			property["default"] = plain(k.fallback)
		}
		properties[k.name] = property
		switch {
		case k.twin == "" && k.required:
			required = append(required, k.name)
		case k.twin == k.name+"_file" && k.required:
			rules = append(rules, schema{"oneOf": []schema{{"required": []string{k.name}}, {"required": []string{k.twin}}}})
		case k.twin == k.name+"_file":
			rules = append(rules, schema{"not": schema{"required": []string{k.name, k.twin}}})
		}
	}
	result := schema{"type": "object", "properties": properties, "additionalProperties": false}
	if required != nil {
		result["required"] = required
	}
	if rules != nil {
		result["allOf"] = rules
	}
	return result
}

// sinkSchema is one alternative a type, each told by its constant.
func sinkSchema() schema {
	var alternatives []schema
	for _, t := range SinkTypes() {
		alternative := sectionSchema(typedSink{&Sink{Type: t}})
		alternative["title"] = string(t)
		alternative["properties"].(schema)["type"] = schema{"const": string(t), "description": find(typedSink{&Sink{Type: t}}.keys(), "type").doc}
		alternatives = append(alternatives, alternative)
	}
	return schema{"oneOf": alternatives, "type": "object", "required": []string{"type"}}
}

// orVariable lets a value that is no text also be written as a text with a variable in it.
func orVariable(s schema) schema {
	return schema{"anyOf": []schema{s, {"type": "string", "pattern": `\$\{`}}}
}

// plain is a default as JSON would have it: a number, true or false, else a text.
func plain(written string) any {
	var value any
	if err := yaml.Unmarshal([]byte(written), &value); err != nil {
		return written
	}
	return value
}
