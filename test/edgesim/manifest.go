package edgesim

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Manifest is a deployment manifest, or a template of one in the form 4.0.0 of the IoT Edge tools.
type Manifest struct {
	Modules []Module // without edgeAgent and edgeHub, by start order and name
}

// manifestDocument is the part of a manifest that concerns modules.
type manifestDocument struct {
	Content map[string]map[string]any `json:"modulesContent"`
}

// manifestModule is a module of edgeAgent's desired properties.
type manifestModule struct {
	StartupOrder int64 `json:"startupOrder"`
	Env          map[string]struct {
		Value any `json:"value"`
	} `json:"env"`
	Settings map[string]any `json:"settings"`
}

// variable is ${NAME} of a template. $NAME without braces is the module's own and left alone.
var variable = regexp.MustCompile(`\$\{([A-Za-z0-9_.-]+)\}`)

// ReadManifest reads a manifest. lookup gives the variables of a template; one that is missing is an error in the
// environment and in the desired properties of a module, and stays as it is in an image's name.
func ReadManifest(doc []byte, lookup func(name string) (string, bool)) (Manifest, error) {
	var d manifestDocument
	if err := json.Unmarshal(doc, &d); err != nil {
		return Manifest{}, err
	}
	agent, ok := d.Content["$edgeAgent"]["properties.desired"].(map[string]any)
	if !ok {
		return Manifest{}, errors.New("modulesContent.$edgeAgent has no properties.desired")
	}
	raw, err := json.Marshal(agent["modules"])
	if err != nil {
		return Manifest{}, err
	}
	var listed map[string]manifestModule
	if err := json.Unmarshal(raw, &listed); err != nil {
		return Manifest{}, fmt.Errorf("modules: %w", err)
	}
	var m Manifest
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		module, err := listed[name].module(name, d.Content[name], lookup)
		if err != nil {
			return Manifest{}, fmt.Errorf("module %s: %w", name, err)
		}
		m.Modules = append(m.Modules, module)
	}
	slices.SortStableFunc(m.Modules, func(a, b Module) int { return int(a.StartupOrder - b.StartupOrder) })
	return m, nil
}

func (l manifestModule) module(name string, content map[string]any, lookup func(string) (string, bool)) (Module, error) {
	m := Module{ID: name, StartupOrder: l.StartupOrder, Env: map[string]string{}}
	for k, v := range l.Env {
		text, err := substitute(fmt.Sprint(v.Value), lookup)
		if err != nil {
			return Module{}, fmt.Errorf("env %s: %w", k, err)
		}
		m.Env[k] = text
	}
	image, _ := l.Settings["image"].(string)
	m.Image = image
	if text, err := substitute(image, lookup); err == nil {
		m.Image = text
	}
	var err error
	if m.CreateOptions, err = createOptions(l.Settings); err != nil {
		return Module{}, err
	}
	desired, err := desiredOf(content)
	if err != nil {
		return Module{}, err
	}
	value, err := substituteAll(desired, lookup)
	if err != nil {
		return Module{}, fmt.Errorf("desired properties: %w", err)
	}
	m.Desired = value
	return m, nil
}

// createOptions is an object in a template and a string, perhaps cut into createOptions01 and so on, in a manifest.
func createOptions(settings map[string]any) (map[string]any, error) {
	if o, ok := settings["createOptions"].(map[string]any); ok {
		return o, nil
	}
	text, _ := settings["createOptions"].(string)
	for i := 1; ; i++ {
		more, ok := settings[fmt.Sprintf("createOptions%02d", i)].(string)
		if !ok {
			break
		}
		text += more
	}
	if text == "" {
		return map[string]any{}, nil
	}
	var o map[string]any
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return nil, fmt.Errorf("createOptions: %w", err)
	}
	return o, nil
}

// desiredOf gathers "properties.desired" and the paths below it that layered deployments use.
func desiredOf(content map[string]any) (map[string]any, error) {
	desired := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(content)) { // the bare key comes before its paths
		rest, ok := strings.CutPrefix(key, "properties.desired")
		if !ok {
			continue
		}
		value := content[key]
		path := strings.Split(strings.TrimPrefix(rest, "."), ".")
		if rest == "" {
			path = nil
		}
		for _, name := range slices.Backward(path) {
			value = map[string]any{name: value}
		}
		object, ok := value.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s is not an object", key)
		}
		desired = mergePatch(desired, object)
	}
	return desired, nil
}

func substitute(text string, lookup func(string) (string, bool)) (string, error) {
	var missing error
	out := variable.ReplaceAllStringFunc(text, func(match string) string {
		name := variable.FindStringSubmatch(match)[1]
		value, ok := lookup(name)
		if !ok {
			missing = fmt.Errorf("variable %s is not set", name)
		}
		return value
	})
	return out, missing
}

func substituteAll(v any, lookup func(string) (string, bool)) (any, error) {
	switch v := v.(type) {
	case string:
		return substitute(v, lookup)
	case map[string]any:
		out := map[string]any{}
		for k, item := range v {
			value, err := substituteAll(item, lookup)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k, err)
			}
			out[k] = value
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			value, err := substituteAll(item, lookup)
			if err != nil {
				return nil, err
			}
			out[i] = value
		}
		return out, nil
	}
	return v, nil
}
