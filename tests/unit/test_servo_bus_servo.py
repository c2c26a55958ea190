"""Rules of the emulated servos, of their bus, and of the faults."""

import math

import pytest

from mpo_robot.config import build
from mpo_robot.errors import ConfigError
from sim.servo_bus.ant import AntBody, Mount
from sim.servo_bus.bus import ServoBus
from sim.servo_bus.emulator import Emulator, EmulatorConfig
from sim.servo_bus.faults import FaultConfig, ServoFault, ServoFaults, WireNoise
from sim.servo_bus.packets import BROADCAST_ID, Instruction, Packet, Parser, StatusError, encode
from sim.servo_bus.servo import REBOOT_S, EmulatedServo, ShaftState, to_angle, to_pulse
from sim.servo_bus.servo_table import ITEMS, OVERHEATING, OVERLOAD

REST = ShaftState(0.0, 0.0, 0.0)


def write(servo, name, value):
    item = ITEMS[name]
    return servo.write(item.address, value.to_bytes(item.size, "little", signed=value < 0))


def words(*values):
    return b"".join(value.to_bytes(2, "little") for value in values)


def answers(bus, packet, now=0.0):
    parser = Parser()
    return [found for data in bus.handle(packet, now) for found in parser.feed(data)]


def test_what_may_be_written():
    servo = EmulatedServo(1)
    assert write(servo, "goal_position", 1000) == StatusError.NONE
    assert servo.get("goal_position") == 1000
    assert write(servo, "goal_position", 5000) == StatusError.DATA_RANGE
    assert write(servo, "goal_position", -1) == StatusError.DATA_RANGE
    assert write(servo, "present_position", 5) == StatusError.ACCESS
    assert servo.write(ITEMS["goal_position"].address, b"\1\2") == StatusError.DATA_LENGTH
    assert servo.write(ITEMS["goal_position"].address + 1, b"\1") == StatusError.DATA_LENGTH
    assert servo.write(200, b"\1") == StatusError.ACCESS
    assert servo.write(64, b"") == StatusError.ACCESS
    assert servo.read(250, 10) == (StatusError.ACCESS, b"")
    assert write(servo, "min_position_limit", 500) == StatusError.NONE
    assert write(servo, "goal_position", 499) == StatusError.DATA_LIMIT
    assert write(servo, "torque_enable", 1) == StatusError.NONE
    assert write(servo, "operating_mode", 1) == StatusError.ACCESS  # EEPROM is locked now


def test_items_side_by_side_are_written_together_or_not_at_all():
    servo = EmulatedServo(1)
    address = ITEMS["profile_acceleration"].address
    assert servo.write(address, (7).to_bytes(4, "little") + (9).to_bytes(4, "little")) == StatusError.NONE
    assert (servo.get("profile_acceleration"), servo.get("profile_velocity")) == (7, 9)
    assert servo.write(address, (8).to_bytes(4, "little") + b"\xff\xff\xff\x7f") == StatusError.DATA_RANGE
    assert servo.get("profile_acceleration") == 7


def test_torque_on_holds_where_the_shaft_is():
    servo = EmulatedServo(1)
    servo.sense(0.0, ShaftState(0.5, 0.0, 0.1))
    assert write(servo, "torque_enable", 1) == StatusError.NONE
    assert servo.get("goal_position") == to_pulse(0.5)
    assert servo.target == pytest.approx(0.5, abs=1e-3)
    assert servo.get("present_current") == 100


def test_the_target_follows_the_goal_at_the_profile_velocity():
    servo = EmulatedServo(1)
    write(servo, "torque_enable", 1)
    write(servo, "profile_velocity", 100)
    write(servo, "goal_position", to_pulse(1.0))
    servo.follow(0.1)
    assert servo.target == pytest.approx(100 * 0.229 * 2 * math.pi / 60 * 0.1)
    for _ in range(10):
        servo.follow(0.1)
    assert servo.target == pytest.approx(to_angle(to_pulse(1.0)))
    write(servo, "profile_velocity", 0)
    write(servo, "goal_position", to_pulse(-1.0))
    servo.follow(0.001)
    assert servo.target == pytest.approx(to_angle(to_pulse(-1.0)))


def test_the_bus_watchdog_stops_a_servo_that_hears_nothing_until_it_is_cleared():
    servo = EmulatedServo(1)
    servo.hear(0.0)
    write(servo, "torque_enable", 1)
    write(servo, "bus_watchdog", 5)
    write(servo, "goal_position", to_pulse(1.0))
    servo.sense(0.09, REST)
    assert servo.get("goal_position") == to_pulse(1.0)
    servo.sense(0.11, REST)
    assert servo.get_unsigned("bus_watchdog") == 255
    assert servo.get("goal_position") == to_pulse(0.0)
    assert write(servo, "goal_position", to_pulse(1.0)) == StatusError.DATA_RANGE
    write(servo, "bus_watchdog", 0)
    assert write(servo, "goal_position", to_pulse(1.0)) == StatusError.NONE


def test_heat_and_overload_switch_off_until_a_reboot():
    servo = EmulatedServo(1)
    write(servo, "torque_enable", 1)
    servo.temperature = 70.0
    servo.sense(0.0, REST)
    assert not servo.torque_enabled
    assert servo.get("hardware_error_status") == OVERHEATING
    assert write(servo, "torque_enable", 1) == StatusError.RESULT_FAIL | StatusError.ALERT
    servo.temperature = 40.0
    servo.fail(OVERLOAD)
    servo.sense(0.1, REST)
    assert servo.get("hardware_error_status") == OVERHEATING | OVERLOAD
    servo.reboot(1.0)
    assert servo.is_silent(1.0 + 0.9 * REBOOT_S)
    assert not servo.is_silent(1.0 + REBOOT_S)
    servo.sense(1.5, REST)
    assert servo.alert == 0
    assert write(servo, "torque_enable", 1) == StatusError.NONE


def test_a_servo_that_is_still_hot_fails_again_after_its_reboot():
    servo = EmulatedServo(1)
    servo.temperature = 90.0
    servo.sense(0.0, REST)
    servo.reboot(0.0)
    servo.sense(1.0, REST)
    assert servo.alert == StatusError.ALERT


def test_ping_read_and_broadcast_ping():
    bus = ServoBus([EmulatedServo(1), EmulatedServo(2)])
    assert answers(bus, Packet(1, Instruction.PING, b"")) == [Packet(1, 0x55, b"\0\xc4\x04\x34")]
    assert [found.identifier for found in answers(bus, Packet(BROADCAST_ID, Instruction.PING, b""))] == [1, 2]
    assert answers(bus, Packet(2, Instruction.READ, words(132, 4)))[0].parameters == b"\0\0\x08\0\0"
    assert answers(bus, Packet(9, Instruction.PING, b"")) == []
    assert answers(bus, Packet(1, 0x77, b""))[0].parameters == bytes([StatusError.INSTRUCTION])
    assert answers(bus, Packet(1, Instruction.READ, b"\0"))[0].parameters == bytes([StatusError.INSTRUCTION])
    assert answers(bus, Packet(1, Instruction.STATUS, b"\0")) == []


def test_sync_and_bulk_instructions():
    bus = ServoBus([EmulatedServo(1), EmulatedServo(2), EmulatedServo(3)])
    sync = words(116, 4) + b"\1" + (1500).to_bytes(4, "little") + b"\3" + (1600).to_bytes(4, "little")
    assert answers(bus, Packet(BROADCAST_ID, Instruction.SYNC_WRITE, sync)) == []
    assert [servo.get("goal_position") for servo in bus.servos.values()] == [1500, 2048, 1600]
    bulk = b"\2" + words(65, 1) + b"\1" + b"\3" + words(116, 4) + (1700).to_bytes(4, "little")
    assert answers(bus, Packet(BROADCAST_ID, Instruction.BULK_WRITE, bulk)) == []
    assert (bus.servos[2].get("led"), bus.servos[3].get("goal_position")) == (1, 1700)
    read = answers(bus, Packet(BROADCAST_ID, Instruction.SYNC_READ, words(116, 2) + b"\3\1\7"))
    assert [(found.identifier, found.parameters) for found in read] == [(3, b"\0\xa4\6"), (1, b"\0\xdc\5")]
    bulk_read = b"\2" + words(65, 1) + b"\1" + words(116, 2)
    read = answers(bus, Packet(BROADCAST_ID, Instruction.BULK_READ, bulk_read))
    assert [(found.identifier, found.parameters) for found in read] == [(2, b"\0\1"), (1, b"\0\xdc\5")]
    for kind in (Instruction.SYNC_READ, Instruction.SYNC_WRITE, Instruction.FAST_SYNC_READ, Instruction.BULK_READ):
        assert answers(bus, Packet(BROADCAST_ID, kind, b"\0\0")) == []
        assert answers(bus, Packet(1, kind, words(116, 4) + b"\1")) == []


def test_fast_sync_read_ends_before_the_first_servo_that_is_silent():
    bus = ServoBus([EmulatedServo(1), EmulatedServo(2), EmulatedServo(3)])
    request = Packet(BROADCAST_ID, Instruction.FAST_SYNC_READ, words(116, 4) + b"\1\2\3")
    (whole,) = bus.handle(request, 0.0)
    assert len(whole) == 8 + 3 * 8
    bus.servos[3].dead = True
    assert bus.handle(request, 0.0) == [whole[:24]]
    bus.servos[1].dead = True
    assert bus.handle(request, 0.0) == []


def test_registered_write_waits_for_action_also_by_broadcast():
    bus = ServoBus([EmulatedServo(1)])
    assert answers(bus, Packet(1, Instruction.ACTION, b""))[0].parameters == bytes([StatusError.INSTRUCTION])
    answers(bus, Packet(1, Instruction.REG_WRITE, words(65) + b"\1"))
    assert (bus.servos[1].get("led"), bus.servos[1].get("registered_instruction")) == (0, 1)
    assert bus.handle(Packet(BROADCAST_ID, Instruction.ACTION, b""), 0.0) == []
    assert (bus.servos[1].get("led"), bus.servos[1].get("registered_instruction")) == (1, 0)


def test_faults_count_from_the_first_motor_switched_on():
    servos = {key: EmulatedServo(key) for key in (1, 2, 3)}
    faults = ServoFaults(
        FaultConfig(
            servos=(ServoFault(1, "dead", 1.0), ServoFault(2, "hot", 0.5, 20.0), ServoFault(3, "overload", 2.0))
        )
    )
    faults.advance(100.0, 0.1, servos)
    write(servos[1], "torque_enable", 1)
    faults.advance(200.0, 0.1, servos)
    faults.advance(200.6, 0.1, servos)
    assert servos[2].temperature == pytest.approx(32.0)
    assert not servos[1].dead
    faults.advance(201.0, 0.4, servos)
    assert servos[1].dead
    assert servos[2].temperature == pytest.approx(40.0)
    assert servos[3].alert == 0
    faults.advance(202.0, 1.0, servos)
    assert servos[3].alert == StatusError.ALERT


def test_noise_is_repeatable_and_as_frequent_as_asked():
    data = bytes(20_000)
    config = FaultConfig(bit_error_rate=0.01, loss=0.1, seed=3)
    spoiled = WireNoise(config).spoil(data)
    assert spoiled == WireNoise(config).spoil(data)
    hit = [byte for byte in spoiled if byte]
    assert 150 < len(hit) < 250
    assert all(byte.bit_count() == 1 for byte in hit)
    noise = WireNoise(config)
    assert 60 < sum(noise.loses_packet() for _ in range(1000)) < 140
    silent = WireNoise(FaultConfig())
    assert silent.spoil(data) == data
    assert not any(silent.loses_packet() for _ in range(1000))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"servos": []}, "each of the ant's eight joints"),
        ({"servos": [{"joint": "knee_1", "id": 1}]}, "unknown joint"),
        ({"servos": [{"joint": "hip_1", "id": 1, "direction": 2}]}, "direction"),
        ({"faults": {"loss": 1.0}}, "probabilities"),
        ({"faults": {"servos": [{"id": 77, "kind": "dead"}]}}, "77"),
        ({"faults": {"servos": [{"id": 1, "kind": "dead", "at_s": -1.0}]}}, "at_s"),
        ({"imu_port": 70_000}, "imu_port"),
    ],
)
def test_settings_that_make_no_sense(settings, text):
    with pytest.raises(ConfigError, match=text):
        Emulator(build(EmulatorConfig, settings))


def test_a_servo_sees_its_joint_through_its_mount_and_moves_it():
    mounts = list(EmulatorConfig().servos)
    mounts[1] = Mount("ankle_1", 2, -1, 0.25)
    body = AntBody(tuple(mounts))
    servos = {mount.id: EmulatedServo(mount.id) for mount in mounts}
    assert body.shaft(mounts[1]).angle == pytest.approx(-1.0 + 0.25)
    for mount in mounts:
        servos[mount.id].sense(0.0, body.shaft(mount))
        write(servos[mount.id], "torque_enable", 1)
    write(servos[2], "goal_position", to_pulse(-0.7 + 0.25))
    for _ in range(300):
        body.step(servos)
    assert body.data.qpos[8] == pytest.approx(0.7, abs=0.05)
    assert body.data.qpos[7] == pytest.approx(0.0, abs=0.05)
    quaternion = body.imu()[:4]
    assert float(quaternion @ quaternion) == pytest.approx(1.0, abs=1e-4)


def test_the_ant_sinks_with_its_motors_off():
    config = EmulatorConfig()
    body = AntBody(config.servos)
    servos = {mount.id: EmulatedServo(mount.id) for mount in config.servos}
    body.data.qpos[8::2] *= 0.6  # half crouched: nothing but the motors keeps it up
    for _ in range(100):
        body.step(servos)
    assert not any(body.model.actuator_gainprm[:, 0])
    assert body.data.actuator_force == pytest.approx(0.0)


def test_emulator_link_leads_to_the_terminal_and_vanishes_with_it(tmp_path):
    link = tmp_path / "bus"
    with Emulator(EmulatorConfig(link=str(link))) as emulator:
        assert str(link.resolve()) == emulator.path
    assert not link.is_symlink()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot make the link"):
        Emulator(EmulatorConfig(link=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_suspended_emulator_does_not_simulate_what_it_missed():
    now = [0.0]
    with Emulator(EmulatorConfig(), clock=lambda: now[0]) as emulator:
        now[0] = 3600.0
        emulator.advance()
        assert emulator.body.data.time <= 0.11
        now[0] += 0.05
        emulator.advance()
        assert emulator.body.data.time <= 0.16


def test_encoded_packets_are_what_the_parser_expects():
    assert Parser().feed(encode(5, Instruction.WRITE, b"\xff\xff\xfd")) == [Packet(5, 3, b"\xff\xff\xfd")]
