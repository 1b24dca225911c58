// Package edgetwin holds package twin's client of edgeHub and of the workload API against an emulated IoT Edge device.
// There is a test for each trap that the MQTT libraries underneath hold ready; it is named by the trap's number.
package edgetwin
