package edgesim

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Limits of twins, as edgeHub and IoT Hub check them.
const (
	maxTwinDepth    = 10
	maxTwinString   = 4096 // bytes
	maxTwinName     = 1024 // bytes
	maxTwinDocument = 32 * 1024
	maxTwinInteger  = 1<<52 - 1
	minTwinInteger  = -(1 << 52)
)

// validateTwin checks a patch of twin properties by the rules of edgeHub's validator. Names are not checked for
// deletion: a null is valid everywhere but below an array.
func validateTwin(patch map[string]any) error {
	doc, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	if len(doc) > maxTwinDocument {
		return fmt.Errorf("twin properties size %d exceeds maximum %d", len(doc), maxTwinDocument)
	}
	return validateToken("", patch, 0, false)
}

func validateToken(name string, item any, depth int, inArray bool) error {
	if err := validateName(name); err != nil {
		return err
	}
	switch v := item.(type) {
	case map[string]any:
		if depth > maxTwinDepth {
			return errDepth()
		}
		for k, child := range v {
			if err := validateToken(k, child, depth+1, inArray); err != nil {
				return err
			}
		}
	case []any:
		if depth > maxTwinDepth {
			return errDepth()
		}
		return validateArray(v, depth+1)
	case nil:
		if inArray {
			return fmt.Errorf("property %s of an object in an array cannot be 'null'", name)
		}
	case string:
		if len(v) > maxTwinString {
			return fmt.Errorf("value associated with property name %s has length %d that exceeds maximum length of %d", name, len(v), maxTwinString)
		}
	case json.Number:
		return validateNumber(name, v)
	}
	return nil
}

func validateArray(items []any, depth int) error {
	for _, item := range items {
		if item == nil {
			return fmt.Errorf("arrays cannot contain 'null' as value")
		}
		var err error
		if inner, ok := item.([]any); ok {
			if depth > maxTwinDepth {
				return errDepth()
			}
			err = validateArray(inner, depth+1)
		} else {
			err = validateToken("", item, depth, true)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func validateName(name string) error {
	if len(name) > maxTwinName {
		return fmt.Errorf("length of property name %.10s.. exceeds maximum length of %d", name, maxTwinName)
	}
	for _, c := range name {
		if c == '.' || c == '$' || c == '#' || unicode.IsControl(c) || unicode.IsSpace(c) {
			return fmt.Errorf("property name %s contains invalid character '%c'", name, c)
		}
	}
	return nil
}

func validateNumber(name string, n json.Number) error {
	if strings.ContainsAny(string(n), ".eE") {
		return nil
	}
	i, err := strconv.ParseInt(string(n), 10, 64)
	if err != nil || i > maxTwinInteger || i < minTwinInteger {
		return fmt.Errorf("property %s has an out of bound value", name)
	}
	return nil
}

func errDepth() error {
	return fmt.Errorf("nested depth of twin property exceeds %d", maxTwinDepth)
}
