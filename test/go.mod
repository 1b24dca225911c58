module github.com/connected-registry/connected-registry/test

go 1.26.0

require github.com/connected-registry/connected-registry v0.0.0-00010101000000-000000000000

require (
	go.uber.org/goleak v1.3.0 // indirect
	golang.org/x/time v0.15.0 // indirect
)

replace github.com/connected-registry/connected-registry => ../
