package twin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
)

// Limits of the document. IoT Hub allows desired properties of 32 KB; the rest is left to other tools.
const (
	MaxDocument = 24 << 10 // bytes without insignificant blanks
	MaxRaw      = 96 << 10 // bytes as they stand in a file, with indentation
	MaxString   = hierarchy.MaxString
	MaxDepth    = 10 // nested objects, IoT Hub's limit

	MaxTokens     = 32 << 20 // bytes of a file of tokens, which no twin has to carry
	maxTokensText = 8 << 20  // bytes of one string in it
)

// kind is what a JSON value is, in the words of the errors.
type kind string

const (
	isNull   kind = "null"
	isFlag   kind = "true or false"
	isNumber kind = "a number"
	isText   kind = "a string"
	isArray  kind = "an array"
	isObject kind = "an object"
)

// value is a JSON value with the members of an object in their order, so that repeated ones are seen.
type value struct {
	kind    kind
	text    string // of a string; the literal of a number
	flag    bool
	members []member
}

type member struct {
	key      string
	value    value
	repeated bool // the key stood in the object before
}

// readTree checks the limits of the document and decodes it. Properties whose name starts with $ belong to the twin's
// service and are left out.
func readTree(doc []byte, maxRaw, maxCompact int) (value, error) {
	doc = bytes.TrimPrefix(doc, []byte("\ufeff"))
	if len(doc) > maxRaw {
		return value{}, fmt.Errorf("document has more than %d bytes", maxRaw)
	}
	if len(bytes.TrimSpace(doc)) == 0 {
		return value{}, errors.New("document is empty")
	}
	if !utf8.Valid(doc) {
		return value{}, errors.New("document is not UTF-8")
	}
	var raw json.RawMessage
	if err := json.Unmarshal(doc, &raw); err != nil { // unlike the others, this one knows the offset
		return value{}, syntaxError(doc, err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, doc); err != nil {
		return value{}, err
	}
	if compact.Len() > maxCompact {
		return value{}, fmt.Errorf("document has %d bytes: want at most %d without blanks between the values", compact.Len(), maxCompact)
	}
	decoder := json.NewDecoder(bytes.NewReader(doc))
	decoder.UseNumber()
	v, err := decode(decoder, 0)
	if err != nil {
		return value{}, err
	}
	if v.kind != isObject {
		return value{}, fmt.Errorf("document is %s: want an object", v.kind)
	}
	return v, nil
}

// syntaxError tells line and column, both from 1, of a JSON error.
func syntaxError(doc []byte, err error) error {
	offset := len(doc)
	text := err.Error()
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && syntax.Offset > 0 && !strings.HasPrefix(text, "unexpected end") {
		offset = min(int(syntax.Offset)-1, len(doc))
	}
	before := doc[:offset]
	line := bytes.Count(before, []byte("\n")) + 1
	column := utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
	return fmt.Errorf("line %d, column %d: %s", line, column, text)
}

func decode(d *json.Decoder, depth int) (value, error) {
	token, err := d.Token()
	if err != nil {
		return value{}, err
	}
	switch t := token.(type) {
	case json.Delim:
		if depth >= MaxDepth {
			return value{}, fmt.Errorf("document is nested more than %d deep", MaxDepth)
		}
		if t == '[' {
			return decodeArray(d, depth)
		}
		return decodeObject(d, depth)
	case string:
		return value{kind: isText, text: t}, nil
	case json.Number:
		return value{kind: isNumber, text: t.String()}, nil
	case bool:
		return value{kind: isFlag, flag: t}, nil
	}
	return value{kind: isNull}, nil
}

// decodeArray skips the elements: no property is an array, since layered deployments could not add to one.
func decodeArray(d *json.Decoder, depth int) (value, error) {
	for d.More() {
		if _, err := decode(d, depth+1); err != nil {
			return value{}, err
		}
	}
	_, err := d.Token()
	return value{kind: isArray}, err
}

func decodeObject(d *json.Decoder, depth int) (value, error) {
	v := value{kind: isObject}
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return value{}, err
		}
		key, _ := token.(string) // the decoder lets nothing else be a key
		inner, err := decode(d, depth+1)
		if err != nil {
			return value{}, err
		}
		if strings.HasPrefix(key, "$") {
			continue
		}
		v.members = append(v.members, member{key: key, value: inner, repeated: seen[key]})
		seen[key] = true
	}
	_, err := d.Token()
	return v, err
}
